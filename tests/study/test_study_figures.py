"""A study's figures: each below its own budget, and drawn of whatever was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.study.compare import Interval
from merit.study.figures import _draw_ray
from merit.study.results import Ray, Results, Row
from merit.study.tables import document, latex_table


def test_a_budget_has_its_own_figures(tmp_path):
    results = Results(
        name="x", complete=True, seeds=[0], budgets=["small", "very-small"], parameters=1, datasets={}, examples={},
        rows=[], comparisons=[], rays=[], answers=[], recommended_axes=[], shared_examples=False, skipped={}, notes=[],
        machine={},
    )  # fmt: skip
    for name in ("forest-small", "pareto-small", "forest-very-small"):
        (tmp_path / f"{name}.svg").touch()
    drawn = [block.stem for block in document(results, tmp_path) if isinstance(block, Path)]
    assert drawn == ["forest-small", "pareto-small", "forest-very-small"]


def test_a_ray_without_a_point_that_all_seeds_measured_is_not_drawn():
    axis = pytest.importorskip("matplotlib.pyplot").subplots()[1]
    one = Interval(value=1.0, low=1.0, high=1.0)
    base = Row(
        budget="b", label="base", method=None, words="", passes=0, supervised_tokens=0, average=one, exact=None,
        faces={"in_mixture": one, "unseen": one}, drift=None, distance=0, seconds=0, chosen=[],
    )  # fmt: skip
    _draw_ray(axis, Ray(budget="b", method="m", points=[]), base, "unseen")
    assert not axis.lines


def test_one_dataset_and_one_seed_are_one(tmp_path):
    results = Results(
        name="x", complete=True, seeds=[0], budgets=[], parameters=1, datasets={"in_mixture": 2, "unseen": 1},
        examples={}, rows=[], comparisons=[], rays=[], answers=[], recommended_axes=[], shared_examples=False,
        skipped={}, notes=[], machine={},
    )  # fmt: skip
    assert "2 in-mixture datasets, 1 unseen dataset." in document(results, tmp_path)[1]
    assert "mean over 1 seed; brackets" in latex_table(results)
