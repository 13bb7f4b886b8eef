"""Intervals that hold what they promise, Holm's correction, and pairing."""

from __future__ import annotations

import numpy as np
import pytest

from merit.evaluate.scores import DatasetScore
from merit.study.compare import Bootstrap, holm, paired


def scores(values, tokens=None, name="d"):
    """One seed's one dataset."""
    tokens = [1] * len(values) if tokens is None else list(tokens)
    return [DatasetScore(name=name, losses=[float(x) for x in values], tokens=tokens, exact=None)]


def estimate(a, b, *, shared=False, draws=400, weights=None):
    return paired(a, b, Bootstrap(shared, draws, seed=0), weights)


def test_difference_is_token_weighted_and_paired():
    a = [scores([1.0, 3.0], [1, 3]), scores([2.0, 2.0], [1, 1])]
    b = [scores([0.0, 2.0], [1, 3]), scores([1.0, 1.0], [1, 1])]
    found = estimate(a, b)
    assert found.value == pytest.approx(1.0)
    assert found.seeds == pytest.approx((1.0, 1.0))
    assert found.low == pytest.approx(1.0), "every example differs by exactly 1: there is no noise left"
    assert found.low > 0


def test_datasets_count_equally_unless_weighted():
    a = [[*scores([1.0] * 8), *scores([0.0, 0.0], name="e")]]
    b = [[*scores([0.0] * 8), *scores([0.0, 0.0], name="e")]]
    assert estimate(a, b).value == pytest.approx(0.5)
    assert estimate(a, b, weights=[3, 1]).value == pytest.approx(0.75)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="different examples"):
        estimate([scores([1.0, 2.0], [1, 2])], [scores([1.0, 2.0], [2, 1])])


@pytest.mark.parametrize("shared", [False, True])
def test_intervals_cover(shared):
    """Of 300 studies without any true difference, about 5% may claim one: five seeds, noise of seeds and examples."""
    rng = np.random.default_rng(5)
    trials, misses = 300, 0
    for _ in range(trials):
        common = rng.normal(0, 1.0, size=12)
        seeds = []
        for shift in rng.normal(0, 0.3, size=5):
            own = common if shared else rng.normal(0, 1.0, size=12)
            seeds.append(scores(own + shift))
        found = estimate(seeds, None, shared=shared, draws=200)
        misses += not found.low <= 0 <= found.high
    assert misses / trials <= 0.085, misses / trials


def test_intervals_find_what_is_there():
    rng = np.random.default_rng(6)
    found = estimate([scores(rng.normal(0.5, 0.2, size=16)) for _ in range(5)], None)
    assert found.low > 0
    assert found.p < 0.01
    assert found.effect > 2


def test_one_seed_has_no_effect_size():
    found = estimate([scores([1.0, 1.2, 0.9, 1.1])], None)
    assert found.effect is None
    assert found.low < 1.05 < found.high


def test_holm_by_hand():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert adjusted == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})
    assert holm({"x": 0.6, "y": 0.9}) == pytest.approx({"x": 1.0, "y": 1.0})
