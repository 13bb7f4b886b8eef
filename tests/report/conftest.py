"""A finished synthetic run and its report, made once."""

from __future__ import annotations

import pytest
from basin import write_basin, write_gate
from synthetic import make_run

from merit.report.build import build_report
from merit.run.layout import RunDir


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo")
    write_gate(run)
    write_basin(run)
    build_report(run.root)
    return run


@pytest.fixture(scope="session")
def page(finished_run: RunDir) -> str:
    return finished_run.report.read_text(encoding="utf-8")
