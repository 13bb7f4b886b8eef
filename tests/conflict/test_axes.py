"""Principal axes by hand in each centring, and their determinism."""

from __future__ import annotations

import numpy as np
import pytest
from sketches import cosines

from merit.conflict.axes import AxesResult, centre_matrix, principal_axes

CENTRES = ["columns", "both", "none"]


def test_centred_by_hand():
    matrix = np.array([[1, 0.5, 0.0], [0.5, 1, 0.0], [0.0, 0.0, 1]])
    assert centre_matrix(matrix, "none") == pytest.approx(matrix)
    means = np.array([0.5, 0.5, 1 / 3])
    assert centre_matrix(matrix, "columns") == pytest.approx(matrix - means)
    unit = np.linalg.cholesky(matrix)
    about_mean = unit - unit.mean(0)
    assert centre_matrix(matrix, "both") == pytest.approx(about_mean @ about_mean.T)


@pytest.mark.parametrize(
    ("centre", "value", "three", "two"),
    [("columns", 24.0, -0.8 * 5**0.5, 1.2 * 5**0.5), ("both", 4.8, -0.8, 1.2), ("none", 5.0, 1.0, -1.0)],
)
def test_five_datasets_in_two_camps_by_hand(centre, value, three, two):
    # C = v vᵀ with v = (1, 1, 1, −1, −1): J v = v − 0.2, ‖v‖² = 5, ‖J v‖² = 4.8. The largest component points up.
    camp = np.array([1.0, 1, 1, -1, -1])
    found = principal_axes(list("abcde"), np.outer(camp, camp), axes=1, centre=centre)
    assert found.eigenvalues == pytest.approx([value, 0, 0, 0, 0], abs=1e-12)
    assert [row[0] for row in found.scores] == pytest.approx([three, three, three, two, two])


def test_columns_are_a_pca_of_the_matrix_rows():
    matrix = cosines(np.random.default_rng(3).standard_normal((5, 7)))
    found = principal_axes(list("abcde"), matrix, axes=5, centre="columns")
    points = matrix - matrix.mean(0)  # rows are the datasets
    values = np.linalg.eigvalsh(points @ points.T)[::-1]
    assert found.eigenvalues == pytest.approx(values, abs=1e-12)
    scores = np.array(found.scores)
    assert scores @ scores.T == pytest.approx(points @ points.T)
    assert (scores**2).sum(0) == pytest.approx(found.eigenvalues, abs=1e-12)


@pytest.mark.parametrize("centre", CENTRES)
def test_a_score_is_the_centred_gradient_along_the_axis(centre):
    vectors = np.random.default_rng(4).standard_normal((6, 9))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = principal_axes(list("abcdef"), unit @ unit.T, axes=3, centre=centre)
    axes = np.array(found.directions).T @ unit  # (3, 9)
    points = unit if centre == "none" else unit - unit.mean(0)
    assert points @ axes.T == pytest.approx(np.array(found.scores))


def test_axes_of_the_first_version_are_read():
    matrix = cosines(np.random.default_rng(5).standard_normal((4, 9)))
    new = principal_axes(list("abcd"), matrix, axes=2, centre="both")
    old = new.model_dump(exclude={"centre", "directions"}) | {"centred": True}
    read = AxesResult.model_validate(old)
    assert read.centre == "both"
    assert np.array(read.directions) == pytest.approx(np.array(new.directions))


def test_two_camps_by_hand():
    # Two pairs, cosine 1 inside and −1 across. Already centred: λ = 4, scores ±1, "a" decides the sign.
    camp = np.array([1.0, 1, -1, -1])
    found = principal_axes(["b", "c", "a", "d"], np.outer(camp, camp), axes=1, centre="both")
    assert found.eigenvalues == pytest.approx([4, 0, 0, 0], abs=1e-12)
    assert [row[0] for row in found.scores] == pytest.approx([-1, -1, 1, 1])
    assert found.centre == "both"
    assert len(found.scores[0]) == 2


def test_uncentred_first_axis_is_the_common_direction():
    matrix = np.full((4, 4), 0.5) + 0.5 * np.eye(4)
    found = principal_axes(list("abcd"), matrix, axes=1, centre="none")
    assert found.eigenvalues == pytest.approx([2.5, 0.5, 0.5, 0.5])
    assert [row[0] for row in found.scores] == pytest.approx([(2.5 / 4) ** 0.5] * 4)


def test_scores_rebuild_the_matrix():
    matrix = cosines(np.random.default_rng(0).standard_normal((9, 30)))
    scores = np.array(principal_axes([f"n{i}" for i in range(9)], matrix, axes=9, centre="both").scores)
    assert scores @ scores.T == pytest.approx(centre_matrix(matrix, "both"))


@pytest.mark.parametrize("centre", CENTRES)
def test_order_of_datasets_does_not_matter(centre):
    names = [f"n{i}" for i in range(12)]
    matrix = cosines(np.random.default_rng(1).standard_normal((12, 40)))
    first = principal_axes(names, matrix, axes=3, centre=centre)
    order = np.random.default_rng(2).permutation(12)
    second = principal_axes([names[i] for i in order], matrix[np.ix_(order, order)], axes=3, centre=centre)
    assert first.eigenvalues == second.eigenvalues
    assert [first.scores[i] for i in order] == second.scores


@pytest.mark.parametrize("centre", ["columns", "both"])
def test_one_dataset(centre):
    found = principal_axes(["a"], np.ones((1, 1)), axes=1, centre=centre)
    assert found.scores == [[0.0]]
