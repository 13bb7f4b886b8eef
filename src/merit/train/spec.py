"""The contract of a branch job: BranchSpec goes in, BranchResult comes out. Both are JSON, for any machine."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pydantic import Field

from merit.base.errors import InputError
from merit.base.kept import Files, damaged, kept
from merit.base.record import Record, Sealed
from merit.config.sections import ModelConfig, TrainConfig
from merit.models.input_sketch import InputSketch, sketch_file
from merit.run.layout import BranchDir, relative

MARKER = "merit.json"  # written last into a training checkpoint
_log = logging.getLogger(__name__)


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

    def same_training(self, other: BranchSpec) -> bool:
        """Whether both train the same branch. θ0 counts by what it is, `model_fingerprint`, not by where it lies."""
        place = {"path": other.model.path, "revision": other.model.revision}
        return self.model_copy(update={"model": self.model.model_copy(update=place)}) == other


class MeasureSpec(Record):
    """`measure.json`: what the branch's job measures after training. The training does not depend on it.

    Attributes:
        examples: training examples on which it measures the inputs of the linear layers.
    """

    examples: int = Field(ge=1)


class CheckpointMarker(Sealed):
    """`merit.json` in a training checkpoint: what it has trained on so far, and the checksums of its files."""

    supervised_tokens: int
    examples: int
    seconds: float
    files: dict[str, str]  # every other file → XXH3


class BranchResult(Sealed):
    """`DONE`: written last. The merge weighs by `supervised_tokens`, which were really trained on."""

    fingerprint: str  # of the spec
    supervised_tokens: int
    examples: int  # examples seen, epochs counted
    steps: int
    seconds: float  # of training alone, over all starts
    final_loss: float | None
    files: dict[str, str]  # file of the checkpoint → sha256

    @property
    def adopted(self) -> bool:
        """Whether another trainer trained it, so that merit has no training time."""
        return self.seconds == 0 and self.final_loss is None


def finished_branch(branch: BranchDir, mark: str) -> BranchResult | None:
    """The result of `branch`, if its files exist and its spec had the fingerprint `mark`; else None.

    It does not read the files' bytes: `damaged_files` does, before the files are used. If a job was killed after it
    wrote DONE, its training state is still there, and is removed now.
    """
    result = _result(branch, branch.done, mark)
    if result is not None:
        shutil.rmtree(branch.training_state, ignore_errors=True)
    return result


def trained_branch(branch: BranchDir, mark: str) -> BranchResult | None:
    """As `finished_branch`, also of a branch that is trained and still has to be measured."""
    return finished_branch(branch, mark) or _result(branch, branch.trained, mark)


def is_measured(branch: BranchDir, mark: str, examples: int | None) -> bool:
    """Whether a finished branch has the sketch of its inputs that is wanted; also if none is.

    Args:
        mark: the fingerprint of its spec.
        examples: as in `MeasureSpec`; None: no sketch is wanted.
    """
    if examples is None:
        return True
    done = finished_branch(branch, mark)
    try:
        sketch = InputSketch.open(branch.checkpoint, branch=mark)
    except InputError as error:
        _log.warning("%s; merit measures the branch again", error)
        return False
    known = done is not None and relative(sketch_file(branch.checkpoint), branch.root) in done.files
    return known and sketch is not None and sketch.facts.wanted == examples


def _result(branch: BranchDir, record: Path, mark: str) -> BranchResult | None:
    return kept(record, BranchResult, {"fingerprint": mark}, Files(branch.root, digest=None)).record


def damaged_files(branch: BranchDir) -> list[str]:
    """The files of a finished branch that are not as its job wrote them. It reads all of them.

    Raises:
        InputError: the branch is not finished.
    """
    return [*damaged(branch.root, BranchResult.load(branch.done).files)]
