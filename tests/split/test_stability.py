"""Bootstrap stability, and agreement between two measurements."""

from __future__ import annotations

import numpy as np
import pytest
from test_evidence import COUNT, NAMES, TOKENS, halves_of, planted

from merit.split.agreement import agreement, mantel
from merit.split.evidence import stability


def test_strong_conflict_is_stable_and_noise_is_not():
    firm = stability(halves_of(planted(2), 0.01, 0), TOKENS, r=2)
    shaky = stability(halves_of(np.zeros((COUNT, 1)), 0.3, 0), TOKENS, r=2)
    assert firm == pytest.approx(1, abs=0.02)
    assert shaky < 0.5
    assert firm == stability(halves_of(planted(2), 0.01, 0), TOKENS, r=2)


def test_stability_grows_as_noise_falls():
    def mean(noise):
        return np.mean([stability(halves_of(planted(2), noise, seed), TOKENS, r=2) for seed in range(3)])

    assert mean(0.4) < mean(0.15) < mean(0.02) + 0.02


def test_a_single_example_cannot_be_judged():
    halves = halves_of(planted(1), 0.01, 0)
    halves.tokens[2] = (8, 0)
    assert np.isnan(stability(halves, TOKENS, r=1))


def test_agreement_with_itself_and_with_nothing():
    matrix = halves_of(planted(2), 0.02, 0).cosines
    same = agreement(NAMES, matrix, matrix, TOKENS, r=2)
    assert (same.mantel_r, same.adjusted_rand, same.captured) == pytest.approx((1, 1, 1))
    assert same.mantel_p < 0.001
    order = np.random.default_rng(0).permutation(COUNT)
    other = agreement(NAMES, matrix, matrix[np.ix_(order, order)], TOKENS, r=2)
    assert other.mantel_p > 0.01
    assert other.captured < 0.6


def test_mantel_is_pearson_off_the_diagonal():
    rng = np.random.default_rng(0)
    a, b = (np.corrcoef(rng.standard_normal((6, 20))) for _ in range(2))
    upper = np.triu_indices(6, 1)
    assert mantel(a, b, permutations=10)[0] == pytest.approx(np.corrcoef(a[upper], b[upper])[0, 1])
