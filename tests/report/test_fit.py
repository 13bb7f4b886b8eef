"""A record that makes no sense is bad input; a fault of our own drawing code is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run
from test_serve import get, serving

from merit.base.errors import InputError
from merit.cli.main import run as merit
from merit.report import build
from merit.report.evidence import read_evidence
from merit.report.serve import ReportServer


def shorten(path: Path, field: str) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    value[field] = value[field][:1]
    path.write_text(json.dumps(value), encoding="utf-8")


def test_lists_of_unlike_lengths_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    shorten(run.conflict, "losses")
    with pytest.raises(InputError, match="has 1 entries for 12 datasets") as caught:
        build.build_report(run.root)
    assert (caught.value.file, caught.value.field) == (str(run.conflict), "losses")
    assert merit(["report", str(run.root)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.conflict}: `losses`: damaged, or not of this run")


@pytest.mark.parametrize(
    ("file", "field", "change"),
    [
        ("conflict/axes.json", "scores", lambda value: value["scores"].pop()),
        ("conflict/axes.json", "scores", lambda value: value["scores"][0].append(1.0)),
        ("conflict/conflict.json", "norms.3", lambda value: value["norms"].__setitem__(3, 1e300)),
        ("mixture.json", "datasets.gcd", lambda value: value["datasets"][2].update(weight=-1.0)),
        ("partition.json", "cuts.axis", lambda value: value["cuts"][0].update(axis=-5)),
    ],
)
def test_what_makes_no_sense_is_found_when_it_is_read(
    tmp_path: Path, file: str, field: str, change: Callable[[Any], object]
) -> None:
    run = make_run(tmp_path / "run")
    [path] = [path for path in run.root.rglob(Path(file).name) if path.as_posix().endswith(file)][:1]
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_evidence(run.root)
    assert (caught.value.file, caught.value.field) == (str(path), field)


@pytest.mark.parametrize("fault", [TypeError, NameError, KeyError, IndexError, ValueError, ZeroDivisionError])
def test_a_fault_of_ours_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]) -> None:
    """The program ends with a traceback and exit code 1, as Python ends one."""
    run = make_run(tmp_path / "run")

    def broken(*_: object) -> None:
        raise fault("of ours")

    monkeypatch.setattr(build, "asked", broken)
    with pytest.raises(fault, match="of ours"):
        merit(["report", str(run.root)])


def test_the_server_shows_a_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")

    def broken(*_: object) -> None:
        raise TypeError("of ours")

    monkeypatch.setattr(build, "asked", broken)
    with serving(ReportServer(run.root, 0)) as server, pytest.raises(ConnectionError):
        get(server, "/")
    assert "TypeError: of ours" in capsys.readouterr().err
