"""Merges by mergekit, where it is installed: its own program on a recipe file, in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from merit.errors import StageError
from merit.io import write_text
from merit.merge.ray import Ray, State
from merit.merge.recipe import other_method_recipe

_SECONDS = 3600


def mergekit() -> str | None:
    """mergekit's program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("mergekit-yaml")
    return str(beside) if beside.is_file() else shutil.which("mergekit-yaml")


def foreign_step(
    ray: Ray, method: str, folders: Sequence[Path], tokens: Sequence[int], base: Path, work: Path
) -> State:
    """The step from θ0 that mergekit's `method` makes of the branches, at its own defaults.

    Raises:
        StageError: mergekit is not installed, took too long, or failed; says what it printed last.
    """
    program = mergekit()
    if program is None:
        raise StageError("mergekit is not installed")
    recipe, out = work / "recipe.yaml", work / "out"
    shutil.rmtree(work, ignore_errors=True)
    models = [str(folder) for folder in folders]
    write_text(recipe, other_method_recipe(method, models, [float(n) for n in tokens], str(base), "float32"))
    command = [program, str(recipe), str(out), "--no-copy-tokenizer", "--random-seed", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise StageError(f"mergekit-yaml has not finished {recipe} within {_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        raise StageError(f"mergekit-yaml failed on {recipe}: {said}")
    step = ray.step(out)
    shutil.rmtree(work, ignore_errors=True)
    return step
