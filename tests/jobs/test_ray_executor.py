"""Jobs on a real Ray cluster: the cases of ray_executor_cases.py in a process of their own; tests/apart.py says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("ray_executor_cases.py")


def test_every_case(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--basetemp", str(tmp_path / "cases"), str(CASES)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout
