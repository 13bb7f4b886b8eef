"""A branch that comes late, or has to go: the running sums Σ n_k θ_k of a merge make both one more addition.

Adding a branch gives the bytes that merging all of them, this one last, would have given: the same additions in the
same order. Removing one subtracts what was added. With whole-number weights (tokens, ones) the sums are exact wherever
they fit 53 bits, and so is what is left; otherwise a value that lies within a unit or two of the 53rd bit of a tie may
round to its other neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.config.sections import MEMORY_BYTES, SHARD_BYTES, DtypeName
from merit.merge.execute import execute_merge
from merit.merge.inputs import open_inputs
from merit.merge.plan import MergeOptions, Output, TensorPlan, pick_dtype
from merit.merge.record import MergeInput, MergeResult, load_record
from merit.merge.setup import PreparedMerge, assemble, check_outputs, merge_input
from merit.merge.weights import check_weights, normalised
from merit.models.source import weights_fingerprint


def add_branch(
    sums: Path,
    branch: Path,
    weight: float,
    outputs: Mapping[float, Path],
    *,
    base: Path | None = None,
    dtype: DtypeName = "input",
    keep_sums: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> MergeResult:
    """Merges a late branch of weight n into the merge whose running sums are in `sums`.

    The weight is on the scale of the earlier ones (tokens with tokens; 1 where all were equal).

    Raises:
        InputError: no running sums, a weight that cannot weigh, or a branch that does not fit.
    """
    check_weights([weight], 1)
    known = _sums(sums)
    factors = [*(item.factor for item in known), float(weight)]
    shares = normalised(check_weights(factors, len(factors)))
    inputs = [_with_share(item, share) for item, share in zip(known, shares, strict=False)]
    inputs.append(merge_input(branch, float(weight), shares[-1]))
    options = MergeOptions(base, dtype, shard_bytes=shard_bytes)
    prepared = _prepare(sums, _Change(branch, float(weight), inputs), _outputs(outputs, keep_sums), options)
    return execute_merge(prepared, memory_bytes=memory_bytes, progress=progress)


def remove_branch(
    sums: Path,
    branch: Path,
    outputs: Mapping[float, Path],
    *,
    base: Path | None = None,
    dtype: DtypeName = "input",
    keep_sums: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> MergeResult:
    """Takes one of its branches out of the merge whose running sums are in `sums`.

    Raises:
        InputError: no running sums, or `branch` is none of what they hold, or all of it.
    """
    known = _sums(sums)
    mark = weights_fingerprint(branch)
    gone = next((item for item in known if item.fingerprint == mark), None)
    if gone is None:
        raise InputError(f"its weights are none of those that were added to {sums}", file=branch)
    left = [item for item in known if item is not gone]
    if not left:
        raise InputError("the only branch in these sums; nothing would be left", file=branch)
    shares = normalised(check_weights([item.factor for item in left], len(left)))
    inputs = [_with_share(item, share) for item, share in zip(left, shares, strict=True)]
    options = MergeOptions(base, dtype, shard_bytes=shard_bytes)
    prepared = _prepare(sums, _Change(branch, -gone.factor, inputs), _outputs(outputs, keep_sums), options)
    return execute_merge(prepared, memory_bytes=memory_bytes, progress=progress)


def _with_share(item: MergeInput, share: float) -> MergeInput:
    """The same input with its new share of the whole."""
    return item.model_copy(update={"weight": share})


@dataclass(frozen=True)
class _Change:
    """One branch more or one less: `factor` × its weights join the sums, which are then those of `inputs`."""

    branch: Path
    factor: float
    inputs: Sequence[MergeInput]


def _prepare(sums: Path, change: _Change, outputs: Sequence[Output], options: MergeOptions) -> PreparedMerge:
    check_outputs(outputs, options)
    opened = open_inputs([sums, change.branch], options.base)
    divisor = math.fsum(item.factor for item in change.inputs)
    tensors = []
    for info in opened.tensors:
        out = pick_dtype(options.dtype, [opened.sources[1].tensors[info.name]])
        tensors.append(TensorPlan(info.name, info.shape, info.elements, out, (1.0, change.factor), divisor))
    return assemble(opened, tensors, outputs, options, change.inputs, late=True)


def _sums(folder: Path) -> list[MergeInput]:
    record = load_record(folder)
    if record.scale is not None:
        raise InputError("a merge, but not its running sums; keep them with keep_sums", file=folder)
    return record.result.inputs


def _outputs(outputs: Mapping[float, Path], keep_sums: Path | None) -> list[Output]:
    wanted = [Output(folder, float(scale)) for scale, folder in sorted(outputs.items())]
    return [*wanted, Output(keep_sums, None)] if keep_sums is not None else wanted
