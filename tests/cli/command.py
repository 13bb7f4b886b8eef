"""Calls the command line in this process: a subprocess would spend a second on imports each time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merit.cli.main import run

FILES = {"chat": "chat.jsonl", "copy": "copy.json", "shout": "shout.parquet", "last": "last.csv"}


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class Command:
    """`merit`, with its streams captured."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: Any) -> Outcome:
        self.capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)


def config_text(model: Path | str, datasets: dict[str, str] | None = None, rest: str = "") -> str:
    """The four files of `four_files` with a one-axis split; `datasets` replaces or adds entries, line by line."""
    entries = {name: f"{{path: {file}}}" for name, file in FILES.items()} | (datasets or {})
    lines = [f"model: {model}", "mixture:", *(f"  {name}: {entry}" for name, entry in entries.items())]
    return "\n".join([*lines, "split: {axes: 1}", "train: {max_length: 128}", rest]) + "\n"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its content; None for a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """`merit` as a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "merit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **options,
    )
