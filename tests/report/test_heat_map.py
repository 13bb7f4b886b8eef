"""The heat map and its tree: likeness orders it, whatever the order of the datasets, and no search runs a name."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from merit.report.evidence import Grouping
from merit.report.sections.heat_map import grow_tree, heatmap_figure

NAMES = ("a", "b", "c", "d", "e")


def cosines() -> np.ndarray:
    """a and d are alike, so are b and e; c is far from all."""
    found = np.full((5, 5), 0.1)
    found[2] = found[:, 2] = -0.3
    for i, j, value in ((0, 3, 0.9), (1, 4, 0.8)):
        found[i, j] = found[j, i] = value
    np.fill_diagonal(found, 1)
    return found


def test_the_tree_sets_like_by_like() -> None:
    tree = grow_tree(cosines())
    assert tree is not None
    assert sorted(tree.order) == [0, 1, 2, 3, 4]
    place = {leaf: i for i, leaf in enumerate(tree.order)}
    assert abs(place[0] - place[3]) == abs(place[1] - place[4]) == 1
    assert place[2] in (0, 4)


def test_branches_join_where_scipy_says() -> None:
    matrix = cosines()
    tree = grow_tree(matrix)
    assert tree is not None
    heights = sorted({y for y in tree.y if y})
    joined = cophenet(linkage(squareform(1 - matrix, checks=False), "average"))
    np.testing.assert_allclose(heights, sorted({round(value, 4) for value in joined}), atol=1e-4)
    feet = [x for x, y in zip(tree.x, tree.y, strict=True) if y == 0]
    assert sorted(feet) == [0, 1, 2, 3, 4]


def test_no_tree_of_two_datasets_or_of_what_is_no_number() -> None:
    assert grow_tree(np.eye(2)) is None
    assert grow_tree(np.full((4, 4), np.nan)) is None


def test_views_agree_on_every_cell() -> None:
    grouping = Grouping(["d", "a", "b", "e", "c"], {"a": 0, "d": 0, "b": 1, "e": 1, "c": 1}, 2)
    figure = heatmap_figure(NAMES, cosines(), cosines() - 0.1, grouping)
    assert figure.search is not None
    plain, tree = figure.views[figure.search.view], figure.views[-1]
    assert list(figure.search.names) == ["d", "a", "b", "e", "c"]
    at = {(i, j): plain.restyle["z"][0][i][j] for i in range(5) for j in range(5)}
    for row, i in enumerate(tree.order):
        for column, j in enumerate(tree.order):
            assert tree.restyle["z"][0][row][column] == at[i, j]
    assert at[0, 1] == 0.9  # d and a
    assert tree.relayout["xaxis.ticktext"] == [figure.search.names[i] for i in tree.order]
    assert {trace["meta"]["view"] for trace in figure.traces[1:]} == {2}
