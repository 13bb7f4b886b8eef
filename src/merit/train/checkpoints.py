"""Checkpoints of a branch in training: which are whole, and which may be removed."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path, PurePath
from typing import Any

from merit.base.files import xxh3_file
from merit.base.kept import Files, files_below, keep, kept
from merit.run.layout import BranchDir
from merit.train.spec import MARKER, CheckpointMarker

KEPT = 2  # if the machine crashes, the newest may not be on the disk yet
_log = logging.getLogger(__name__)


class Counters:
    """What the branch has really trained on, over all its starts."""

    def __init__(self, supervised_tokens: int = 0, examples: int = 0, seconds: float = 0.0) -> None:
        self.supervised_tokens = supervised_tokens
        self.examples = examples
        self._before = seconds
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def as_dict(self) -> dict[str, Any]:
        return {
            "supervised_tokens": self.supervised_tokens,
            "examples": self.examples,
            "seconds": round(self.seconds, 3),
        }


def newest_checkpoint(branch: BranchDir) -> tuple[Path, Counters] | None:
    """The newest checkpoint that is whole. Newer ones, which a kill cut short, are removed.

    transformers itself would resume silently from a checkpoint whose optimizer file is missing or damaged.
    """
    best: tuple[Path, Counters] | None = None
    for folder in sorted(branch.training_state.glob("checkpoint-*"), key=step_of, reverse=True):
        if best is not None and (folder / MARKER).is_file():
            continue  # it is verified if it is ever needed
        counters = _counters(folder) if step_of(folder) >= 0 and best is None else None
        if counters is None:
            _drop(folder)
        else:
            best = (folder, counters)
    return best


def _counters(folder: Path) -> Counters | None:
    """What the marker in `folder` says; None if any file of the checkpoint is not as it was written."""
    found = kept(folder / MARKER, CheckpointMarker, files=Files(folder, xxh3_file, alone=True))
    if found.damaged:
        _log.warning("%s is damaged; training resumes from an earlier checkpoint, or from the start", folder)
    marker = found.record
    return Counters(marker.supervised_tokens, marker.examples, marker.seconds) if marker is not None else None


def mark_whole(branch: BranchDir, step: int, counters: Counters) -> None:
    """Marks the checkpoint of `step` as whole. Call it when all of it has been written."""
    folder = branch.training_state / f"checkpoint-{step}"
    marker = CheckpointMarker(**counters.as_dict(), files={})
    keep(folder / MARKER, marker, folder, files_below(folder, MARKER), xxh3_file)


def drop_older(branch: BranchDir) -> None:
    """Removes all but the newest checkpoints.

    The trainer's own rotation sorts by time of change: a checkpoint whose removal a kill cut short would count as the
    newest. It would also remove the marker last.
    """
    for folder in sorted(branch.training_state.glob("checkpoint-*"), key=step_of)[:-KEPT]:
        _drop(folder)


def _drop(folder: Path) -> None:
    """Removes the marker first, so that what a kill leaves behind does not count as whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: PurePath) -> int:
    """The step of a checkpoint's folder, by its name; −1 if it has none."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1
