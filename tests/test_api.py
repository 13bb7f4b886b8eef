"""The Python API: what the commands call, imported late."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import merit


@pytest.mark.parametrize("name", merit.__all__)
def test_every_name_is_there(name: str) -> None:
    assert callable(getattr(merit, name))
    assert merit._HOME.keys() == set(merit.__all__)


def test_the_version_is_that_of_the_project_and_of_the_changelog() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    first = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert merit.__version__ == project["version"] == first.split()[1]


def test_importing_merit_loads_nothing_heavy() -> None:
    code = "import sys, merit; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from merit.cli.main import run; code = run(['--help']); "
        "sys.stderr.write(str([code, *(m for m in ('torch', 'numpy', 'pydantic', 'yaml') if m in sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[0]"
    assert "run" in done.stdout.split()


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="merge_all"):
        _ = merit.merge_all
