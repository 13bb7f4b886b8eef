"""The branch job's contract: BranchSpec goes in, BranchResult comes out. Both are JSON and cross machines."""

from __future__ import annotations

from merit.config.model import ModelConfig
from merit.config.train import TrainConfig
from merit.run.record import Record, Sealed

MARKER = "merit.json"  # written last into a training checkpoint


class BranchData(Record):
    """One dataset of the branch. `data` is relative to the run directory."""

    name: str
    data: str
    weight: float
    fingerprint: str


class BranchSpec(Record):
    """`spec.json`: everything that a branch's result depends on."""

    method: str
    branch: int
    model: ModelConfig
    model_fingerprint: str
    train: TrainConfig
    data: list[BranchData]
    max_length: int
    planned_tokens: int  # supervised tokens over all epochs
    seed: int


class CheckpointMarker(Sealed):
    """`merit.json` in a training checkpoint: what had been trained on, and what the checkpoint's files hold."""

    supervised_tokens: int
    examples: int
    seconds: float
    files: dict[str, str]  # every other file → XXH3


class BranchResult(Sealed):
    """`DONE`: written last. `supervised_tokens` were really trained on; the merge weighs by them."""

    fingerprint: str  # of the spec
    supervised_tokens: int
    examples: int  # examples seen, epochs counted
    steps: int
    seconds: float  # training alone, over all sittings
    final_loss: float | None
    files: dict[str, str]  # file of the checkpoint → sha256

    @property
    def adopted(self) -> bool:
        """Whether another trainer made it, which leaves merit no time to measure."""
        return self.seconds == 0 and self.final_loss is None
