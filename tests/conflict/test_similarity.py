"""Streaming products and what follows from the half-sets."""

from __future__ import annotations

import numpy as np
import pytest
from sketches import cosines, noisy_gram, noisy_store, store_of

from merit.base.errors import InputError
from merit.conflict import similarity
from merit.conflict.similarity import disattenuated, half_cosines, half_gram, noise, reliability

NAMES = [f"d{i}" for i in range(6)]


def test_cosines_by_hand(tmp_path):
    # a: halves (1,0)·2 tokens and (0,1)·2 tokens → mean (.5, .5). b: (3, 0) over 1 token and nothing → mean (3, 0).
    store = store_of(
        tmp_path,
        {"a": (np.array([[2.0, 0], [0, 2.0]]), (2, 2)), "b": (np.array([[3.0, 0], [0, 0]]), (1, 0))},
    )
    gram = half_gram(store, ["a", "b"])
    assert gram.means == pytest.approx(np.array([[0.5, 1.5], [1.5, 9.0]]))
    assert gram.norms == pytest.approx([0.5**0.5, 3.0])
    assert gram.cosines == pytest.approx(np.array([[1, 0.5**0.5], [0.5**0.5, 1]]))
    assert half_cosines(gram)[0] == 0
    assert np.isnan(half_cosines(gram)[1])
    assert np.isnan(noise(gram)[1])


@pytest.mark.parametrize("columns", [1, 7, 400])
def test_blocks_do_not_matter(tmp_path, columns):
    store, _ = noisy_store(tmp_path)
    gram = half_gram(store, NAMES, budget_bytes=columns * 4 * 12)
    halves = np.stack([store.read_halves(name) for name in NAMES]).astype(np.float64)
    want = np.einsum("ihd,jkd->ihjk", halves, halves)
    assert gram.products == pytest.approx(want, rel=1e-5, abs=1e-3)
    assert gram.cosines == pytest.approx(cosines(halves.sum(1)), abs=1e-6)
    assert np.array_equal(gram.cosines, gram.cosines.T)
    assert np.diag(gram.cosines).tolist() == [1.0] * 6
    whole = similarity.gram(store, NAMES, budget_bytes=columns * 4 * 12)
    assert whole == pytest.approx(gram.means, rel=1e-5, abs=1e-5)


def test_order_of_names(tmp_path):
    store, _ = noisy_store(tmp_path)
    forward, backward = half_gram(store, NAMES), half_gram(store, NAMES[::-1])
    assert backward.cosines == pytest.approx(forward.cosines[::-1, ::-1], abs=1e-6)


def test_missing_row(tmp_path):
    store, _ = noisy_store(tmp_path)
    for measure in (half_gram, similarity.gram):
        with pytest.raises(InputError, match="missing or damaged sketch"):
            measure(store, [*NAMES, "absent"])
    store.path("d3").unlink()
    with pytest.raises(InputError, match="damaged"):
        similarity.gram(store, NAMES)


def test_spearman_brown_by_hand(tmp_path):
    # cosine between the halves 0.6 → reliability 1.2 / 1.6 = 0.75
    store = store_of(tmp_path, {"a": (np.array([[5.0, 0], [3.0, 4.0]]), (1, 1)), "b": (np.eye(2) * [1, -1], (1, 1))})
    gram = half_gram(store, ["a", "b"])
    assert half_cosines(gram) == pytest.approx([0.6, 0.0])
    assert reliability(gram) == pytest.approx([0.75, 0.0])
    assert np.isnan(disattenuated(gram, gram.cosines)[0, 1])


def test_disattenuation_undoes_the_pull_toward_zero():
    plain, corrected, rel = [], [], []
    for seed in range(40):
        gram, truth = noisy_gram(noise=1.2, seed=seed)
        plain.append(gram.cosines)
        corrected.append(disattenuated(gram, gram.cosines))
        rel.append(reliability(gram))
    upper = np.triu_indices(6, 1)
    true = cosines(truth)[upper]
    assert (np.mean(plain, 0)[upper] - true).mean() < -0.1
    assert abs((np.mean(corrected, 0)[upper] - true).mean()) < 0.02
    # What reliability claims to be: the share of ‖g‖² that is signal.
    signal = (truth**2).sum(1)
    assert np.mean(rel, 0) == pytest.approx(signal / (signal + 400 * 1.2**2 / 18), abs=0.03)


@pytest.mark.parametrize("tokens", [(9, 9), (4, 14)])
def test_standard_errors_are_those_of_repeated_draws(tokens):
    draws, claimed = [], []
    for seed in range(150):
        gram, _ = noisy_gram(noise=0.6, seed=seed, tokens=tokens, count=8)
        draws.append(gram.cosines)
        claimed.append(np.add.outer(noise(gram) ** 2, noise(gram) ** 2))
    upper = np.triu_indices(8, 1)
    true = np.std(draws, 0)[upper]
    assert np.sqrt(np.mean(claimed, 0)[upper]).mean() == pytest.approx(true.mean(), rel=0.15)
