"""Advice follows the user's trade-off; correlations find what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from merit.base.errors import InputError
from merit.study.advice import Candidate, choose, parse_trade_off
from merit.study.question import VARIANTS, QuestionResult, answers, centre, correlation


def candidate(label, inside, unseen, retention):
    losses = {"in_mixture": inside, "unseen": unseen, "retention": retention}
    return Candidate(label, f"words of {label}", losses, losses)


FOUND = [candidate("joint", 1.0, 3.0, 2.0), candidate("joint × 0.5", 1.4, 2.2, 1.2), candidate("merit", 1.6, 1.9, 1.3)]


@pytest.mark.parametrize(
    ("prefer", "best"), [("in_mixture=1", "joint"), ("unseen=3,retention=1", "merit"), ("retention=1", "joint × 0.5")]
)
def test_the_trade_off_decides(prefer, best):
    advice = choose(FOUND, parse_trade_off(prefer), "note")
    assert advice.best.label == best


def test_what_is_given_up_is_said():
    advice = choose(FOUND, parse_trade_off(None), "note")
    assert advice.best.label == "merit" or advice.best.label == "joint × 0.5"
    text = "\n".join(advice.lines)
    assert "of in-mixture loss against joint (words of joint)" in text
    assert advice.next.label.split(" × ")[0] != advice.best.label.split(" × ")[0]


def test_the_best_merge_of_each_set_of_branches_follows_the_trade_off():
    found = [
        replace(candidate("merit", 1.6, 1.9, 1.0), branches="merit"),
        replace(candidate("merit × 0.5", 1.9, 2.1, 0.9), branches="merit"),
        replace(candidate("merit-regmean", 1.1, 1.7, 1.4), branches="merit"),
        replace(candidate("joint", 1.0, 3.0, 2.0), branches="joint"),
        replace(candidate("joint × 0.5", 1.4, 2.2, 1.2), branches="joint"),
    ]
    for prefer, best in (("in_mixture=1", "merit-regmean"), ("retention=1", "merit × 0.5")):
        advice = choose(found, parse_trade_off(prefer), "note")
        assert {name: item.label for name, item in advice.merges.items()} == {"merit": best}
        assert f"  of the merges of merit's branches: {best} (words of {best})" in advice.lines
    assert "merges" not in "".join(choose(FOUND, parse_trade_off(None), "note").lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unsen=1", "no face 'unsen'"),
        ("unseen=x", "'x' is not a number"),
        ("unseen=-1", "-1 is no weight"),
        ("unseen=0", "all weights"),
    ],
)
def test_bad_trade_offs(text, said):
    with pytest.raises(InputError, match=said):
        parse_trade_off(text)


def test_centring_removes_rows_and_columns():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(8, 8))
    shifted = matrix + rng.normal(size=(8, 1)) * 5 + rng.normal(size=(1, 8)) * 5
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(centre(matrix)[off], centre(shifted)[off], atol=1e-9)


def test_correlation_ignores_the_diagonal_and_copies():
    matrix = np.arange(16.0).reshape(4, 4)
    other = matrix.copy()
    np.fill_diagonal(other, -100)
    assert correlation(matrix, other, np.array([0, 1, 2, 2, 3])) == pytest.approx(1.0)


def test_answers_find_the_similarity_that_predicts():
    rng = np.random.default_rng(1)
    found = []
    for seed in range(3):
        true = rng.normal(size=(12, 12))
        noise = rng.normal(size=(12, 12))
        similar = {name: (noise if name == "raw" else true).tolist() for name in VARIANTS}
        harm = (-true + rng.normal(size=(12, 12)) * 0.2 + rng.normal(size=(12, 1))).tolist()
        found.append(
            QuestionResult(
                mark=str(seed),
                names=list("abcdefghijkl"),
                similarity=similar,
                harm=harm,
                base=[0.0] * 12,
                recommended_axes=1,
            )
        )
    result = {item.variant: item for item in answers(found, draws=200)}
    assert result["adam"].centred.value > 0.9
    assert result["adam"].gain.low > 0.3
    assert result["raw"].centred.low < 0 < result["raw"].centred.high
