"""How merit starts itself: a module that lies beside a stranger's data is not imported by a job."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import merit
from merit.base.machine import PYTHON, merit_command


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("pydantic", "merit", "typer", "random"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\nraise SystemExit(9)\n")
    done = subprocess.run(merit_command("schema"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "imported").exists()


def test_every_command_is_made_that_way() -> None:
    """In a list or tuple that starts a Python, `-m` comes after `PYTHON`."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(merit.__file__).parent.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"sys\.executable,\s*\"-", line) and path.name != "machine.py"
    ]
    assert found == []


def test_what_a_library_starts_is_not_served_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("")
    code = (
        "import subprocess, sys, merit.cli.main as program\n"
        "started = [sys.executable, '-m', 'other']\n"
        "program.run = lambda _: subprocess.run(started, stderr=subprocess.DEVNULL).returncode\n"
        "program.main()"
    )
    assert subprocess.run([*PYTHON, "-c", code], cwd=tmp_path, check=False).returncode == 1
