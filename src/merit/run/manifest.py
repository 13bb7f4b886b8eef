"""Stage records: what a finished stage depended on, so that a rerun skips it or says why it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from merit.base.errors import InputError
from merit.base.files import inside, sha256_files
from merit.base.record import Record
from merit.run.layout import RunDir, relative


class StageRecord(Record):
    """One finished stage. `depends` maps what it depends on (`train`, `mixture`, …) to its fingerprint."""

    stage: str
    depends: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)  # results, relative to the run → sha256


@dataclass(frozen=True)
class Freshness:
    """Whether a stage must run, and the reason in words; no reason is needed where it never ran."""

    fresh: bool
    why: str
    damaged: tuple[Path, ...] = ()  # results that are not as they were written


def check_stage(run: RunDir, stage: str, depends: Mapping[str, str]) -> Freshness:
    """Compares the record of `stage` with what it depends on now."""
    try:
        record = StageRecord.load(run.stage(stage))
    except InputError:
        return Freshness(False, "")
    if not all(_own(run, name) for name in record.files):
        return Freshness(False, "its record is damaged")
    changed = sorted(name for name in {*depends, *record.depends} if depends.get(name) != record.depends.get(name))
    # Looked at even where something changed: a stage keeps what it can use of an earlier result.
    marks = _marks([run.root / name for name in record.files])
    damaged = {
        name: run.root / name for (name, mark), now in zip(record.files.items(), marks, strict=True) if now != mark
    }
    if changed or damaged:
        why = [f"{', '.join(changed)} changed"] if changed else []
        why += [f"{', '.join(damaged)} damaged or gone"] if damaged else []
        return Freshness(False, "; ".join(why), tuple(damaged.values()))
    return Freshness(True, "unchanged")


def finish_stage(run: RunDir, stage: str, depends: Mapping[str, str], files: Sequence[Path] = ()) -> None:
    """Records that `stage` is whole. Call it after everything the stage wrote is on disk.

    Args:
        files: results whose damage would otherwise go unnoticed; their checksums are recorded.
    """
    marks = dict(zip([relative(path, run.root) for path in files], _marks(files), strict=True))
    StageRecord(stage=stage, depends=dict(depends), files=marks).save(run.stage(stage))


def forget_stage(run: RunDir, stage: str) -> None:
    """Removes the record, before the stage's files are touched."""
    run.stage(stage).unlink(missing_ok=True)


def _own(run: RunDir, name: str) -> bool:
    """Whether a record may name it: what is damaged is removed, so a record from elsewhere must not choose what."""
    try:
        return not inside(run.root, name).is_dir()
    except (InputError, ValueError, OSError):
        return False


def _marks(paths: Sequence[Path]) -> list[str]:
    return [mark or "-" for mark in sha256_files(paths)]
