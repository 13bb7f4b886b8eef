"""kill -9 at ten random moments costs time, never bits."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from runs import merit, start, weights_of, write_recipe

from four_files import write_four_files

KILLS = 10


def test_a_run_killed_ten_times_ends_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    write_four_files(tmp_path)
    # Checkpoints several times a second, so that kills fall before, into and after them.
    file = write_recipe(tmp_path, tiny_model, epochs=25, minutes=0.004)
    begun = time.monotonic()
    merit("run", file, "-o", tmp_path / "undisturbed")
    whole = time.monotonic() - begun
    rng = random.Random(20260724)
    kills = 0
    # Moments are drawn over a whole run's length; a short-lived attempt still gets past start-up now and then.
    while kills < KILLS:
        process = start("run", file, "-o", tmp_path / "killed")
        try:
            process.communicate(timeout=rng.uniform(0.1, 0.6) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        # It got through: the remaining kills go to a new run.
        assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed")
        shutil.rmtree(tmp_path / "killed")
    merit("run", file, "-o", tmp_path / "killed")
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed")
    assert not list((tmp_path / "killed").rglob("*.part"))
