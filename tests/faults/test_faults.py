"""A fault of each kind. `make faults` inflicts some hundreds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from faults.fault import KINDS


def test_one_fault_of_each_kind_is_survived() -> None:
    # A process of its own: it forks, and pytest's has threads.
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--quick", "--workers", "1"],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["faults_survived"] + figures["faults_skipped"] == len(KINDS)
