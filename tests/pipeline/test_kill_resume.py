"""kill -9 at ten random moments costs time, never bits."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import time
from pathlib import Path

from runs import start_warm, weights_of, write_recipe

from four_files import write_four_files

KILLS = 10


def test_a_run_killed_ten_times_ends_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    write_four_files(tmp_path)
    # Checkpoints several times a second, so that kills fall before, into and after them.
    file = write_recipe(tmp_path, tiny_model, epochs=8, minutes=0.004)
    begun = time.monotonic()
    assert start_warm("run", file, "-o", tmp_path / "undisturbed").wait() == 0
    whole = time.monotonic() - begun
    rng = random.Random(20260724)
    kills = 0
    # Moments are drawn over almost half of a run; most attempts get past what the one before had done.
    while kills < KILLS:
        process = start_warm("run", file, "-o", tmp_path / "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.01, 0.4) * whole)
        if process.poll() is None:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        # It got through: the remaining kills go to a new run.
        assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed")
        shutil.rmtree(tmp_path / "killed")
    assert start_warm("run", file, "-o", tmp_path / "killed").wait() == 0
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed")
    assert not list((tmp_path / "killed").rglob("*.part"))
