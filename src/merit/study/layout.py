"""Every path of a study's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
