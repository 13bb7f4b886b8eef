"""Means, errors and differences, by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from merit.evaluate.scores import DatasetScore
from merit.evaluate.statistics import (
    exact_difference,
    half_width,
    mean_difference,
    mean_exact,
    mean_loss,
    p_value,
    told_apart,
)


def _score(losses: list[float], tokens: list[int], exact: list[float] | None = None) -> DatasetScore:
    return DatasetScore(name="x", losses=losses, tokens=tokens, exact=exact)


def test_a_dataset_counts_once_and_a_token_once_in_it() -> None:
    mean, error = mean_loss([_score([1, 2], [3, 1]), _score([4, 4], [1, 9])])
    assert mean == pytest.approx((1.25 + 4) / 2)
    # First dataset: residuals w(x − m)/w̄ = 3·(−0.25)/2, 1·0.75/2 → sd 0.53, se 0.375; second: 0.
    assert error == pytest.approx(0.375 / 2)


def test_equal_weights_give_the_textbook_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean, error = mean_loss([_score(values, [5] * 4)])
    variance = sum((value - 4) ** 2 for value in values) / 3
    assert (mean, error) == (pytest.approx(4), pytest.approx(math.sqrt(variance / 4)))


def test_a_paired_difference_forgets_what_both_share() -> None:
    a = [_score([1.1, 5.1, 9.1], [1, 1, 1])]
    b = [_score([1.0, 5.0, 9.0], [1, 1, 1])]
    difference, error = mean_difference(a, b)
    assert difference == pytest.approx(0.1)
    assert error == pytest.approx(0, abs=1e-12)


def test_one_example_has_no_error_of_its_own() -> None:
    assert mean_loss([_score([2.0], [3])]) == (2.0, None)
    _, error = mean_loss([_score([1.0, 3.0], [1, 1]), _score([2.0], [3])])
    assert error == pytest.approx(1 / math.sqrt(2))  # sd √2, two examples: 1; the second is taken to be like it


def test_exact_match_is_over_scored_datasets() -> None:
    mean, error = mean_exact([_score([1], [1], [1.0, 0.0]), _score([1], [1]), _score([1], [1], [1.0])])
    assert mean == 0.75
    assert error == pytest.approx(0.5 / math.sqrt(2))  # sd √½, two answers: 0.5; the single answer is taken to be alike
    assert mean_exact([_score([1], [1])]) == (None, None)


def test_answers_all_alike_have_no_error_rather_than_none_at_all() -> None:
    assert mean_exact([_score([1], [1], [0.0] * 16)]) == (0.0, None)


def test_exact_match_is_compared_answer_by_answer() -> None:
    right = [1.0, 1.0, 0.0, 1.0]
    a, b = [_score([1], [1], right), _score([1], [1])], [_score([1], [1], [1.0, 0.0, 0.0, 1.0]), _score([1], [1])]
    difference, error = exact_difference(a, b)
    assert difference == 0.25
    assert error == pytest.approx(0.5 / math.sqrt(4))  # differences 0 1 0 0 have sd ½
    assert exact_difference(a, a) == (0.0, None)


@pytest.mark.parametrize("freedom", [1, 2.5, 4, 30, 1000])
def test_intervals_and_p_values_are_those_of_scipys_t(freedom) -> None:
    law = stats.t(freedom)
    assert half_width(0.3, freedom) == pytest.approx(0.3 * law.ppf(0.975), rel=1e-12)
    assert p_value(-0.7, 0.3, freedom) == pytest.approx(2 * law.sf(0.7 / 0.3), rel=1e-12)


def test_a_difference_counts_where_its_interval_excludes_zero() -> None:
    assert half_width(2.0) == pytest.approx(2 * stats.norm.ppf(0.975), rel=1e-12)
    assert [told_apart(value, 1.0) for value in (-1.97, -1.95, 0.0, 1.95, 1.97)] == [-1, 0, 0, 0, 1]
    assert [told_apart(value, 0.0) for value in (-0.1, 0.0, 0.1)] == [-1, 0, 1]
