"""Files that do not fit together are bad input; a fault of our own drawing code is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import make_run
from test_serve import get, serving

from merit.base.errors import InputError
from merit.cli.main import run as merit
from merit.report import build
from merit.report.serve import ReportServer


def shorten(path: Path, field: str) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    value[field] = value[field][:1]
    path.write_text(json.dumps(value), encoding="utf-8")


def test_lists_of_unlike_lengths_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    shorten(run.conflict, "losses")
    with pytest.raises(InputError, match="its files do not fit together") as caught:
        build.build_report(run.root)
    assert caught.value.file == str(run.root)
    assert merit(["report", str(run.root)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.root}: its files do not fit together")


@pytest.mark.parametrize("fault", [TypeError, AttributeError, NameError])
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
