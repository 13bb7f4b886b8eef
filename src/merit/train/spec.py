"""The contract of a branch job: BranchSpec goes in, BranchResult comes out. Both are JSON, for any machine."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

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
    round: int = 1  # of `train.rounds`: which part of the training this is, and `model` what it starts from

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the first round: so a branch without rounds is what it was before there were any."""
        found: dict[str, Any] = serialize(self)
        return found if self.round > 1 else {key: value for key, value in found.items() if key != "round"}

    @property
    def is_last(self) -> bool:
        """Whether the branch is trained to its end."""
        return self.round == self.train.rounds

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
    spec = kept(branch.spec, BranchSpec).record
    if result is not None and (spec is None or spec.is_last):  # otherwise the next round goes on from it
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
