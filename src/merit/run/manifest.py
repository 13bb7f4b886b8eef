"""Stage records: what a finished stage depended on, so that a rerun skips it or says why it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from merit.base.kept import Files, Kept, keep, kept
from merit.base.record import Record
from merit.run.layout import RunDir


class StageRecord(Record):
    """One finished stage. `depends` maps what it depends on (`train`, `mixture`, …) to its fingerprint."""

    stage: str
    depends: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)  # results, relative to the run → sha256


def check_stage(run: RunDir, stage: str, depends: Mapping[str, str]) -> Kept[StageRecord]:
    """Compares the record of `stage` with what it depends on now."""
    return kept(run.stage(stage), StageRecord, {"depends": depends}, Files(run.root, always=True))


def finish_stage(run: RunDir, stage: str, depends: Mapping[str, str], files: Sequence[Path] = ()) -> None:
    """Records that `stage` is whole. Call it after everything the stage wrote is on disk.

    Args:
        files: results whose damage would otherwise go unnoticed; their checksums are recorded.
    """
    keep(run.stage(stage), StageRecord(stage=stage, depends=dict(depends)), run.root, files)


def forget_stage(run: RunDir, stage: str) -> None:
    """Removes the record, before the stage's files are touched."""
    run.stage(stage).unlink(missing_ok=True)
