"""MergeResult: what a merge was made of, and what it measured. Kept in the merged folder as `merit_merge.json`.

Inputs have short names: what tells them apart, and nothing of the machine they lay on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.record import Record
from merit.config.sections import DtypeName, Rounding

RECORD = "merit_merge.json"


class MergeInput(Record):
    """One input. θ̄ = Σ factor_k θ_k / Σ factor; `weight` is its share, and 0 for θ0.

    `fingerprint` covers config, headers and probes of the bytes.
    """

    path: str
    factor: float
    weight: float
    fingerprint: str


class OuterRecord(Record):
    """The outer step that a merge of a round took. `before` is the momentum of the round before."""

    rate: float
    momentum: float
    before: MergeInput | None


class MergeResult(Record):
    """A finished merge. Maps are keyed by β as `%g`. Norms are over all parameters, summed in float64."""

    mark: str  # fingerprint of inputs, weights and options
    inputs: list[MergeInput]
    base: MergeInput | None
    weights: list[float]  # shares, summing to 1
    rules: list[WeightRule]
    rule: str | None = None  # that is no average
    ridge: float | None = None  # of that rule
    start: MergeInput | None = None  # what its steps were taken from, where it is not `base`
    outer: OuterRecord | None = None  # an outer step, from `start` or else `base`
    solved: int = 0  # tensors that it merged; the others are averages
    displacement: dict[str, float]  # ‖θ_out − θ0‖ as written; empty without a base
    branch_displacement: list[float]  # ‖θ_k − θ0‖; empty without a base
    rounding_norm: dict[str, float]  # ‖written − exact‖
    rounding_error: dict[str, float]  # the same over ‖θ_out − θ0‖; empty without a base
    dtype: str  # of most parameters written: float32, bfloat16, float16, float64
    requested_dtype: DtypeName
    rounding: Rounding
    seed: int
    shard_bytes: int
    tensors: int
    parameters: int
    bytes: int  # of one output's tensors
    seconds: float
    checksums: dict[str, dict[str, str]]  # β, or `sums` → shard → checksum
    removed: bool  # a branch was taken out of running sums
    notes: list[str]
    version: str


class MergeRecord(Record):
    """What lies in a merged folder: the merge, and which of its outputs this is (`scale` null: running sums)."""

    scale: float | None
    result: MergeResult

    @property
    def label(self) -> str:
        """The key of this output in the result's maps."""
        return "sums" if self.scale is None else f"{self.scale:g}"


def load_record(folder: Path) -> MergeRecord:
    """The record of a merged folder.

    Raises:
        InputError: no folder that this engine merged.
    """
    if not (folder / RECORD).is_file():
        raise InputError(f"merit did not merge this folder: it has no {RECORD}", file=folder)
    return MergeRecord.load(folder / RECORD)


class WeightRule(Record):
    """Other weights for the tensors whose name `pattern` (a regular expression) is found in; the first match counts."""

    pattern: str
    weights: list[float]


def short_names(paths: Sequence[str]) -> list[str]:
    """A Hub id where the path is a Hub snapshot; otherwise what follows the folder that all paths share.

    Folders of one repository are told apart by what follows the snapshot, and snapshots by their revision.
    """
    local = [path for path in paths if hub_id(path) is None]
    shared = os.path.commonpath([Path(path).parent for path in local]) if local else ""
    names = [hub_id(path) or Path(os.path.relpath(path, shared)).as_posix() for path in paths]
    names = [_below(path, name) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return [_revised(path, name) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _snapshot(path: str) -> tuple[str, list[str]]:
    """The revision of a Hub snapshot, and the folders below it."""
    parts = Path(path).parts
    at = parts.index("snapshots") + 1 if "snapshots" in parts else len(parts)
    return parts[at] if at < len(parts) else "", [*parts[at + 1 :]]


def _below(path: str, name: str) -> str:
    return "/".join((name, *_snapshot(path)[1]))


def _revised(path: str, name: str) -> str:
    revision, _ = _snapshot(path)
    return f"{name}@{revision[:12]}" if revision else name


def hub_id(path: str) -> str | None:
    """`org/name` of `…/models--org--name/snapshots/…`, the cache of the Hub's client."""
    for part in Path(path).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return None
