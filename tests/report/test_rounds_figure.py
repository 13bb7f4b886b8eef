"""The loss after each round against the bytes moved until then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic import make_run
from test_report_browser import BROWSER, check, use_page
from test_report_content import chapter

from merit.evaluate.scores import Table
from merit.report.build import build_report, chapters
from merit.report.drawing import Figure
from merit.report.evidence import read_evidence
from merit.report.export import figures_of
from merit.run.layout import RunDir

HOSTILE = "<img src=x onerror=alert(1)>"
CHECKPOINT, K, PARAMETERS, STEPS = 4096, 4, 134_515_008, 200  # of the synthetic run


def with_rounds(run: RunDir, losses: list[float], *, label: str = "merit/round-{}") -> RunDir:
    """Adds a row a round before the last of the main method to the results table."""
    table = Table.load(run.table)
    merit = next(row for row in table.rows if row.label == "merit")
    at = table.rows.index(merit)
    rows = [
        merit.model_copy(update={"label": label.format(number), "kind": "round", "in_mixture": loss})
        for number, loss in enumerate(losses, 1)
    ]
    table.model_copy(update={"rows": [*table.rows[:at], *rows, *table.rows[at:]]}).save(run.table)
    return run


def figure(run: RunDir) -> Figure | None:
    found = [item for item in figures_of(chapters(read_evidence(run.root))) if item.id == "rounds"]
    return found[0] if found else None


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return with_rounds(make_run(tmp_path / "run"), [2.9, 2.4, 2.2])


def test_every_round_stands_where_its_bytes_are(run: RunDir) -> None:
    found = figure(run)
    assert found is not None
    traces = {trace["name"]: trace for trace in found.traces}
    assert traces["merit"]["x"] == [K * (2 * number - 1) * CHECKPOINT for number in (1, 2, 3, 4)]
    assert traces["merit"]["y"] == [2.9, 2.4, 2.2, 2.03]
    assert traces["random"]["x"] == [K * CHECKPOINT]  # it is merged once
    assert traces["joint"]["x"] == [2 * (K - 1) * 4 * PARAMETERS * STEPS]
    assert max(trace["x"][-1] for trace in found.traces) == traces["joint"]["x"][0]
    assert found.layout["xaxis"]["type"] == "log"
    ticks = ["10 kB", "100 kB", "1 MB", "10 MB", "100 MB", "1 GB", "10 GB", "100 GB", "1 TB"]
    assert found.layout["xaxis"]["ticktext"] == ticks
    assert [row[0] for row in found.table.rows] == ["merit/round-1", "merit/round-2", "merit/round-3", "merit", "joint",
                                                    "random"]  # fmt: skip


def test_a_merge_of_anothers_branches_is_there_too(run: RunDir) -> None:
    """It has no training of its own; the table has its bytes."""
    table = Table.load(run.table)
    merit = next(row for row in table.rows if row.label == "merit")
    again = {"label": "once", "method": "once", "branches": "random", "bytes_moved": 7_000, "in_mixture": 2.1}
    table.model_copy(update={"rows": [*table.rows, merit.model_copy(update=again)]}).save(run.table)
    found = figure(run)
    assert found is not None
    traces = {trace["name"]: trace for trace in found.traces}
    assert (traces["once"]["x"], traces["once"]["y"]) == ([7_000], [2.1])
    assert found.table.rows[-1][0] == "once"


def test_labels_of_points_above_each_other_stand_apart(run: RunDir) -> None:
    found = figure(run)
    assert found is not None
    places = {trace["name"]: trace["textposition"] for trace in found.traces}
    assert places == {"merit": ["top right"] * 4, "joint": ["top left"], "random": ["bottom right"]}


def test_the_words_beside_it_count_the_same(run: RunDir) -> None:
    text = build_report(run.root).read_text(encoding="utf-8")
    assert "after each of 4 rounds" in text
    assert "4 × 7 × 4.1 kB = 115 kB" in text
    assert "115 kB, in 4 rounds" in text


def test_the_time_of_every_round_counts(run: RunDir) -> None:
    """The merges between two rounds, and that each round waits for its longest branch."""
    record = run.method().merge_record
    for number in (1, 2, 3, 4):  # the last is of an earlier run, with more rounds
        target = run.method().round(number).merge_record
        target.parent.mkdir(parents=True)
        target.write_text(record.read_text().replace('"seconds": 2.0', f'"seconds": {10.0**number}'))
    table = Table.load(run.table)
    rows = [row.model_copy(update={"machine_seconds": 71.0} if row.label == "merit" else {}) for row in table.rows]
    table.model_copy(update={"rows": rows}).save(run.table)
    text = chapter(build_report(run.root).read_text(encoding="utf-8"), "cost")
    assert "merging18 min 32 s" in text
    assert "training, 4 machines1 min 11 s (the longest branch of each round)45 s at best1.58" in text


def test_without_rounds_there_is_none(tmp_path: Path) -> None:
    assert figure(make_run(tmp_path / "run")) is None


def test_while_nothing_has_been_evaluated_there_is_none(run: RunDir) -> None:
    run.table.unlink()
    assert figure(run) is None


def test_names_are_escaped(tmp_path: Path) -> None:
    run = with_rounds(make_run(tmp_path / "run"), [2.9, 2.4], label=HOSTILE + "{}")
    found = figure(run)
    assert found is not None
    assert HOSTILE not in str(found.spec)
    assert HOSTILE not in build_report(run.root).read_text(encoding="utf-8")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not opened")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_it(run: RunDir, tmp_path: Path, width: int) -> None:
    build_report(run.root)
    check(use_page(run.report, tmp_path / "profile", width=width))
    shutil.rmtree(tmp_path / "profile")
