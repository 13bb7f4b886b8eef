"""The chapters of the gate and of the basin: what was found, how to read it, what was published."""

from __future__ import annotations

from pathlib import Path

import pytest
from basin import write_gate
from parsing import Page
from synthetic import make_run
from test_report_content import chapter

from merit.diagnose.records import RESULTS
from merit.report.build import build_report
from merit.report.sections.reading import READINGS


def test_every_check_is_asked_read_and_set_beside_what_was_published(page: str) -> None:
    text = chapter(page, "diagnostics")
    assert set(READINGS) == set(RESULTS.values())
    for reading in READINGS.values():
        assert reading.question in text
        assert f"How to read it. {reading.read} Published: {reading.published}." in text
        assert reading.read.count(". ") == 0, "one sentence"
    assert "Merge-ready" in text


def test_every_check_has_its_figure(page: str) -> None:
    found = {element.attributes["id"] for element in Page(page).all("figure")}
    assert found >= {
        f"fig-{name}" for name in ("connectivity", "displacement", "ways", "train-held-out", "perturbation")
    }
    assert found >= {f"fig-{name}" for name in ("alignment", "calibration", "landscape", "gate")}


def test_a_gate_that_says_go(page: str) -> None:
    text = chapter(page, "gate")
    assert "Go. The pilots stayed in one basin." in text
    assert "4 pilots trained on 2% of their data (3,250 supervised tokens in all)" in text
    assert "(0.084 nats) is a barrier" in text  # 2% of θ0's loss, as by default


@pytest.mark.parametrize(("until", "went_on"), [("split", False), ("evaluate", True)])
def test_a_gate_that_says_no(tmp_path: Path, until: str, went_on: bool) -> None:
    run = make_run(tmp_path / "run", until=until)
    write_gate(run, ready=False)
    text = chapter(build_report(run.root).read_text(encoding="utf-8"), "gate")
    assert "No-go." in text
    assert ("The run went on all the same." in text) == went_on
    assert "a barrier of 0.400 nats" in text


def test_a_run_without_a_gate_has_no_such_chapter(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert not [
        e
        for e in Page(build_report(run.root).read_text(encoding="utf-8")).all("section")
        if e.attributes["id"] == "gate"
    ]
