"""A run in a process of its own, with one more file on the Python path: names are known when merit is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "diagnose"))  # for `finished_run`
RUN = """
import sys
from pathlib import Path
from finished_run import finish_run
from merit.report.build import build_report
build_report(finish_run(Path(sys.argv[1]), steps=2).root)
"""


def add(folder: Path, kind: str, name: str, text: str) -> None:
    """Writes the extension's one file below `folder`."""
    file = folder / "merit_ext" / kind / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def python(folder: Path, *arguments: str, code: int = 0) -> str:
    """What Python prints with these arguments and `folder` on its path."""
    path = [folder, ROOT / "src", ROOT / "tests" / "diagnose", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def schema(folder: Path) -> str:
    """`merit schema`."""
    return python(folder, "-m", "merit", "schema")


def reference(folder: Path) -> str:
    """The generated reference of the configuration."""
    return python(folder, str(ROOT / "docs" / "generate_configuration.py"))


def finish(folder: Path, recipe: str) -> Path:
    """A finished run of a recipe, with its report: the run directory."""
    (folder / "merit.yaml").write_text(recipe, encoding="utf-8")
    python(folder, "-c", RUN, "merit.yaml")
    return folder / "runs" / "merit"
