"""Every path of a study's directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import StageError
from merit.base.files import write_text
from merit.merge.ray import Ray, State
from merit.merge.recipe import other_method_recipe
from merit.run.layout import BranchDir, RunDir


@dataclass(frozen=True)
class StudyDir:
    """A study. Cells and points are named by the fingerprint of all that they depend on, so what is shared is there
    once, and what is there is right."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "study.yaml"

    @property
    def init(self) -> Path:
        """θ0 that was made here, its random start, and the data of its warm-up."""
        return self.root / "init"

    @property
    def init_done(self) -> Path:
        """Says of what settings `init` is the result; written last."""
        return self.init / "init.json"

    @property
    def run(self) -> RunDir:
        """The study as a run directory: its lock and its events."""
        return RunDir(self.root)

    def seed(self, seed: int) -> RunDir:
        """One seed's data, gradients and conflict."""
        return RunDir(self.root / "seeds" / str(seed))

    def cell(self, mark: str) -> BranchDir:
        """One training."""
        return BranchDir(self.root / "cells" / mark)

    def point(self, mark: str) -> Path:
        """The scores of one model."""
        return self.root / "points" / f"{mark}.json"

    def drift(self, seed: int) -> Path:
        """θ0's own answers to this seed's prompts."""
        return self.root / "seeds" / str(seed) / "drift.json"

    def job(self, seed: int, budget: str) -> Path:
        return self.root / "jobs" / f"{seed}-{budget}"

    def summary(self, seed: int, budget: str) -> Path:
        """What one seed and budget have come to: written by their job, read by the tables."""
        return self.job(seed, budget) / "summary.json"

    def so_far(self, seed: int, budget: str) -> Path:
        """The same of a job that has not finished: the methods that it has measured."""
        return self.job(seed, budget) / "so_far.json"

    def question(self, seed: int) -> Path:
        """Similarities and measured harm of one seed."""
        return self.root / "seeds" / str(seed) / "question.json"

    @property
    def results(self) -> Path:
        """Tables and figures."""
        return self.root / "results"

    @property
    def table(self) -> Path:
        return self.results / "results.json"


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
