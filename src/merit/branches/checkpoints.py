"""Checkpoints of a branch in training: which of them are whole, and which may go."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from merit.branches.spec import MARKER
from merit.errors import InputError
from merit.io import read_json, write_json
from merit.run.layout import BranchDir

_KEPT = 2  # a crash of the machine may take what the newest has not yet got onto the disk


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

    transformers resumes without a word where a file of the optimizer is missing, so every file's size is compared.
    """
    best: tuple[Path, Counters] | None = None
    for folder in sorted(branch.training_state.glob("checkpoint-*"), key=_step, reverse=True):
        counters = _counters(folder) if _step(folder) >= 0 else None
        if counters is None:
            _drop(folder)
        elif best is None:
            best = (folder, counters)
    return best


def _counters(folder: Path) -> Counters | None:
    """What the marker says of the checkpoint in `folder`; None if any of it is not there."""
    try:
        marker = read_json(folder / MARKER)
        files = marker.pop("files")
        if any((folder / name).stat().st_size != size for name, size in files.items()):
            return None
        return Counters(**marker)
    except (InputError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def mark_whole(branch: BranchDir, step: int, counters: Counters) -> None:
    """Says that the checkpoint of `step` is whole; called when all of it has been written."""
    folder = branch.training_state / f"checkpoint-{step}"
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    sizes.pop(MARKER, None)  # of an earlier sitting that got this far
    write_json(folder / MARKER, counters.as_dict() | {"files": sizes})


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
