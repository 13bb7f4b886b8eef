"""The snippets of docs/run-directory.md run as they stand, on a synthetic run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_run

from merit.run.layout import RunDir

PAGE = Path(__file__).parents[2] / "docs" / "run-directory.md"


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "my-data" / "runs" / "merit")
    rows = run.gradients / "rows"
    rows.mkdir(parents=True)
    np.arange(8, dtype="<f4").tofile(rows / "sums.f32")
    (rows / "sums.json").write_text(json.dumps({"tokens": [1, 1]}), encoding="utf-8")
    tensor = {"name": "w", "shape": [4], "start": 0, "size": 4}
    (run.gradients / "info.json").write_text(json.dumps({"layout": {"tensors": [tensor]}}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(snippets) == 4
    exec("\n".join(snippets), {})
    printed = capsys.readouterr().out
    assert "w [4] 7.348" in printed  # the norm of (2, 3, 4, 5)
    assert len(printed.splitlines()) == 1 + 1 + 4 + 12


def test_the_page_names_every_path_of_the_layout() -> None:
    page = PAGE.read_text(encoding="utf-8")
    run = RunDir(Path("RUN"))
    branch = run.method().branch(0)
    paths = [
        *(run.config, run.mixture, run.similarity, run.conflict, run.axes, run.table, run.drift, run.report, run.card),
        *(run.events, run.method().partition, run.method().merge_record, branch.log, branch.done, branch.spec),
    ]
    for path in paths:
        assert path.name in page, path
