"""What a study keeps: the scores of a model, and what a method has come to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merit.base.record import Record
from merit.config.study import MEASURED
from merit.evaluate.scores import DatasetScore

Face = Literal["in_mixture", "unseen", "retention"]
FACES: tuple[Face, ...] = ("in_mixture", "unseen", "retention")
DRIFT, TEXT = MEASURED


class Faces(Record):
    """One model on one part of the held-out examples, dataset by dataset. Retention holds drift and text, too."""

    in_mixture: list[DatasetScore]
    unseen: list[DatasetScore]
    retention: list[DatasetScore]

    def face(self, name: Face) -> list[DatasetScore]:
        found: list[DatasetScore] = getattr(self, name)
        return found

    @property
    def losses(self) -> dict[str, float]:
        """Face → unweighted mean over its datasets; a face without datasets is left out."""
        found = {name: self.face(name) for name in FACES}
        return {name: sum(s.loss for s in scores) / len(scores) for name, scores in found.items() if scores}

    @property
    def average(self) -> float:
        """Unweighted mean of the faces, as the paper averages benchmarks."""
        losses = self.losses
        return sum(losses.values()) / len(losses)


class PointScores(Record):
    """`points/<mark>.json`. Validation chooses; test is reported, and only measured where it will be."""

    mark: str
    validation: Faces
    test: Faces | None = None


class PointResult(Record):
    """One point of a method's ray."""

    scale: float
    ridge: float | None  # of a curvature-aware merge
    mark: str
    validation: dict[str, float]  # face → loss
    average: float  # of them
    distance: float  # ‖θ − θ0‖


class MethodResult(Record):
    """What one method came to on one seed and budget."""

    name: str
    mark: str
    groups: list[list[str]]
    supervised_tokens: int  # really trained on, over all branches
    branch_tokens: list[int]
    steps: list[int]
    seconds: float  # of training, over all branches
    branch_distance: list[float]  # ‖θ_k − θ0‖
    points: list[PointResult]
    plain: int  # the point that the method's name stands for: scale 1, ridge by validation
    chosen: int  # the point with the best validation average
    notes: list[str] = Field(default_factory=list)


class Summary(Record):
    """`jobs/<seed>-<budget>/summary.json`."""

    mark: str
    seed: int
    budget: str
    base: str  # mark of θ0's scores
    methods: dict[str, MethodResult]
    skipped: dict[str, str]  # method → why it could not run
    parameters: int
    seconds: float
