"""A user's own extension: one file below `merit_ext`, and merit run where Python finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "run" / "old_run"


def write_extension(folder: Path, kind: str, name: str, text: str) -> Path:
    """Writes the one file."""
    file = folder / "merit_ext" / kind / f"{name}.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs Python with `folder` on its path."""
    path = os.pathsep.join(filter(None, (str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    )


def merit(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs merit with `folder` on Python's path."""
    return python(folder, "-m", "merit", *arguments)
