"""Small whole runs, as a user starts them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import warm
from merit.base.machine import merit_command
from merit.cli.main import run
from merit.evaluate.scores import Table
from merit.run.layout import RunDir

# To be formatted with `model`; the four files of four_files.py, cut in two.
HEAD = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet, weight: 0.5}}
held_out_fraction: 0.25
calibration: {{examples: 6}}
split: {{splitter: pca, axes: 1}}
"""
RECIPE = (
    HEAD
    + """
train:
  {{epochs: {epochs}, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32, checkpoint_minutes: {minutes},
    snapshots: 2}}
baselines:
  joint: {{splitter: single, scales: [1.0, 0.5]}}
evaluate: {{held_out: 4, generate: 1, max_new_tokens: 4, drift: 2}}
"""
)


def write_recipe(folder: Path, model: Path, *, epochs: int = 2, minutes: float = 10) -> Path:
    """merit.yaml in `folder`, which holds the four files of conftest.py."""
    file = folder / "merit.yaml"
    file.write_text(RECIPE.format(model=model, epochs=epochs, minutes=minutes))
    return file


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """`merit …` as a process of its own, output captured."""
    command = [sys.executable, "-m", "merit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def start_warm(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """`merit …` and its jobs as processes that have imported what they need: kills fall into their work."""
    return warm.Popen(merit_command(*map(str, arguments)), env=os.environ | warm.WARM_JOBS)


def merit(*arguments: str | Path) -> str:
    """`merit …` to its end, which must be a good one; returns stdout."""
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def merit_here(*arguments: str | Path) -> str:
    """As `merit`, but in this process, which has imported torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*map(str, arguments)])
    assert code == 0, err.getvalue()
    return out.getvalue()


def weights_of(run: Path) -> dict[str, str]:
    """Every model below `run` → SHA-256 of its weights."""
    files = sorted(run.rglob("model*.safetensors"))
    return {file.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    """The rows of its table, without the seconds of training."""
    return [row.model_dump(exclude={"train_seconds", "machine_seconds"}) for row in Table.load(run.table).rows]
