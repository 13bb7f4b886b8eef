"""Checkpoints of a branch in training: which of them are whole, and which may go."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import xxhash

from merit.base.kept import Files, files_below, keep, kept
from merit.run.layout import BranchDir
from merit.train.spec import MARKER, CheckpointMarker

_KEPT = 2  # a crash of the machine may take what the newest has not yet got onto the disk
_CHUNK = 1 << 22  # bytes
_log = logging.getLogger(__name__)


class Counters:
    """What was really trained on, over all sittings of the branch."""

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
    """The newest checkpoint that is whole. Any other is removed: a kill may have cut it short.

    transformers resumes without a word where a file of the optimizer is missing, or has other bytes than were written.
    """
    best: tuple[Path, Counters] | None = None
    for folder in sorted(branch.training_state.glob("checkpoint-*"), key=_step, reverse=True):
        if best is not None and (folder / MARKER).is_file():
            continue  # what it holds is looked at if it is ever needed
        counters = _counters(folder) if _step(folder) >= 0 and best is None else None
        if counters is None:
            _drop(folder)
        else:
            best = (folder, counters)
    return best


def _counters(folder: Path) -> Counters | None:
    """What the marker says of the checkpoint in `folder`; None if any of it is not as it was written."""
    found = kept(folder / MARKER, CheckpointMarker, files=Files(folder, _xxh3, alone=True))
    if found.damaged:
        _log.warning("%s is damaged; training goes on from an earlier one, or from the start", folder)
    marker = found.record
    return Counters(marker.supervised_tokens, marker.examples, marker.seconds) if marker is not None else None


def mark_whole(branch: BranchDir, step: int, counters: Counters) -> None:
    """Says that the checkpoint of `step` is whole; called when all of it has been written."""
    folder = branch.training_state / f"checkpoint-{step}"
    keep(folder / MARKER, CheckpointMarker(**counters.as_dict(), files={}), folder, files_below(folder, MARKER), _xxh3)


def _xxh3(path: Path) -> str:
    """SHA-256 of 100 GB takes over a minute, each time."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def drop_older(branch: BranchDir) -> None:
    """Removes all but the newest checkpoints.

    The trainer's own rotation is not used: it goes by time of change, so that one whose removal a kill cut short passes
    for the newest, and keeps its marker to the end.
    """
    for folder in sorted(branch.training_state.glob("checkpoint-*"), key=_step)[:-_KEPT]:
        _drop(folder)


def _drop(folder: Path) -> None:
    """The marker goes first: what is left after a kill is not whole, and says so."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1
