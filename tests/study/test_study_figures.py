"""A study's figures: each below its own budget, and drawn of whatever was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from merit.cli.main import run
from merit.study.compare import Interval
from merit.study.figures import _draw_ray
from merit.study.results import Ray, Results, Row
from merit.study.spec import StudyDir
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


def test_the_table_in_a_terminal_is_at_most_100_columns_wide(tmp_path, monkeypatch, capsys):
    one = Interval(value=1.0, low=0.9, high=1.1)
    row = Row(
        budget="whole", label="rounds-4-of-a-long-name@2", method=None, words="", passes=1, supervised_tokens=1,
        average=one, exact=0.5, faces=dict.fromkeys(("in_mixture", "unseen", "retention"), one), drift=0.1, distance=9,
        seconds=0, chosen=[], bytes_moved=10**9,
    )  # fmt: skip
    results = Results(
        name="x", complete=True, seeds=[0], budgets=["whole"], parameters=1, examples={}, rows=[row], comparisons=[],
        datasets={"in_mixture": 2, "unseen": 1, "retention": 1}, rays=[], answers=[], recommended_axes=[],
        shared_examples=False, skipped={}, notes=[], machine={},
    )  # fmt: skip
    study = SimpleNamespace(dir=StudyDir(tmp_path), base=tmp_path)
    monkeypatch.setattr("merit.study.spec.Study.open", lambda *args, **options: study)
    monkeypatch.setattr("merit.study.tables.publish", lambda study: results)
    assert run(["study", str(tmp_path), "--tables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x: 1 seed, budget whole"
    assert max(len(line.rstrip()) for line in lines[:-1]) <= 100
    assert any(line.startswith("  rounds-4-of-a-long-name@2: ") and "1 GB" in line for line in lines)


def test_one_dataset_and_one_seed_are_one(tmp_path):
    results = Results(
        name="x", complete=True, seeds=[0], budgets=[], parameters=1, datasets={"in_mixture": 2, "unseen": 1},
        examples={}, rows=[], comparisons=[], rays=[], answers=[], recommended_axes=[], shared_examples=False,
        skipped={}, notes=[], machine={},
    )  # fmt: skip
    assert "2 in-mixture datasets, 1 unseen dataset." in document(results, tmp_path)[1]
    assert "mean over 1 seed; brackets" in latex_table(results)
