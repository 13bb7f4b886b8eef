"""A fault of each kind. `make faults` inflicts some hundreds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import warm
from faults.fault import KINDS


def test_one_fault_of_each_kind_is_survived() -> None:
    # A process of its own: it forks, and pytest's has threads.
    command = [sys.executable, "-m", "faults", "--quick", "--workers", "1"]
    place = Path(__file__).parents[1]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    figures = json.loads(out.splitlines()[-1])
    assert figures["faults_survived"] + figures["faults_skipped"] == len(KINDS)
