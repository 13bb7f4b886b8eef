"""The branch job's contract: BranchSpec goes in, BranchResult comes out. Both are JSON and cross machines."""

from __future__ import annotations

import shutil

from merit.base.kept import Files, damaged, kept
from merit.base.record import Record, Sealed
from merit.config.sections import ModelConfig, TrainConfig
from merit.run.layout import BranchDir

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


def finished_branch(branch: BranchDir, mark: str) -> BranchResult | None:
    """The result of `branch` if its files are there and it was made from the spec with fingerprint `mark`, else None.

    Their bytes are read by `damaged_files`, before anything is made of them. A job that is killed after its DONE leaves
    its training state behind; that goes now.
    """
    result = kept(branch.done, BranchResult, {"fingerprint": mark}, Files(branch.root, digest=None)).record
    if result is not None:
        shutil.rmtree(branch.training_state, ignore_errors=True)
    return result


def damaged_files(branch: BranchDir) -> list[str]:
    """Files of a finished branch that are not as its job wrote them; reads all of them.

    Raises:
        InputError: the branch is not finished.
    """
    return [*damaged(branch.root, BranchResult.load(branch.done).files)]
