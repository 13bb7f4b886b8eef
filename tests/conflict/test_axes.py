"""Principal axes by hand, and their determinism."""

from __future__ import annotations

import numpy as np
import pytest
from sketches import cosines

from merit.conflict.axes import centred, principal_axes


def test_centred_by_hand():
    matrix = np.array([[1, 0.5, 0.0], [0.5, 1, 0.0], [0.0, 0.0, 1]])
    assert centred(matrix).sum(0) == pytest.approx([0, 0, 0])
    unit = np.linalg.cholesky(matrix)
    about_mean = unit - unit.mean(0)
    assert centred(matrix) == pytest.approx(about_mean @ about_mean.T)


def test_two_camps_by_hand():
    # Two pairs, cosine 1 inside and −1 across. Already centred: λ = 4, scores ±1, "a" decides the sign.
    camp = np.array([1.0, 1, -1, -1])
    found = principal_axes(["b", "c", "a", "d"], np.outer(camp, camp), axes=1)
    assert found.eigenvalues == pytest.approx([4, 0, 0, 0], abs=1e-12)
    assert [row[0] for row in found.scores] == pytest.approx([-1, -1, 1, 1])
    assert found.centred
    assert len(found.scores[0]) == 2


def test_uncentred_first_axis_is_the_common_direction():
    matrix = np.full((4, 4), 0.5) + 0.5 * np.eye(4)
    found = principal_axes(list("abcd"), matrix, axes=1, centre=False)
    assert found.eigenvalues == pytest.approx([2.5, 0.5, 0.5, 0.5])
    assert [row[0] for row in found.scores] == pytest.approx([(2.5 / 4) ** 0.5] * 4)


def test_scores_rebuild_the_matrix():
    matrix = cosines(np.random.default_rng(0).standard_normal((9, 30)))
    scores = np.array(principal_axes([f"n{i}" for i in range(9)], matrix, axes=9).scores)
    assert scores @ scores.T == pytest.approx(centred(matrix))


def test_order_of_datasets_does_not_matter():
    names = [f"n{i}" for i in range(12)]
    matrix = cosines(np.random.default_rng(1).standard_normal((12, 40)))
    first = principal_axes(names, matrix, axes=3)
    order = np.random.default_rng(2).permutation(12)
    second = principal_axes([names[i] for i in order], matrix[np.ix_(order, order)], axes=3)
    assert first.eigenvalues == second.eigenvalues
    assert [first.scores[i] for i in order] == second.scores


def test_one_dataset():
    found = principal_axes(["a"], np.ones((1, 1)), axes=1)
    assert found.scores == [[0.0]]
