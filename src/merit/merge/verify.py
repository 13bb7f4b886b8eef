"""`verify_merge`: is a merged folder still what was written, and is that what its inputs give?"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.kept import damaged
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.config.sections import OuterConfig
from merit.merge.codec import Float64s, Scratch, decode
from merit.merge.lora import AdapterMergeResult, difference, merge_adapters, recorded
from merit.merge.outer import Outer
from merit.merge.plan import Block, MergeOptions, MergePlan, Output, PreparedMerge, prepare_merge, whole_rows
from merit.merge.record import RECORD, MergeRecord, MergeResult, load_record
from merit.merge.stream import CHUNK, Accumulator, solve
from merit.models.adapter import WEIGHTS, Adapter
from merit.models.checkpoint import ITEM_BYTES, Checkpoint, FilePool, TensorInfo
from merit.models.source import weights_fingerprint

BLOCKS = 64
_WRONG = {
    "gone": "this shard of the merge is gone",
    "changed": "its bytes are not those that were merged (their checksum differs)",
}


class VerifyResult(Record):
    """What was found to hold. `rounded_otherwise` is 0 unless a branch was removed from running sums."""

    shards: int
    bytes_hashed: int
    blocks: int
    parameters_recomputed: int
    parameters: int
    rounded_otherwise: int


def verify_merge(
    folder: Path,
    *,
    inputs: Sequence[Path] | None = None,
    base: Path | None = None,
    blocks: int = BLOCKS,
    seed: int | None = None,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Hashes every shard of `folder` and recomputes random blocks of it from its inputs, bit by bit.

    Args:
        inputs: where the inputs are now, in their order, when they moved; the same for `base`.
        blocks: blocks of about a million parameters to recompute; all of them where there are fewer.
        seed: of the choice of blocks; None: another choice each time.

    Raises:
        InputError: a shard, an input or a block that is not what it was; names file and tensor.
    """
    record = load_record(folder)
    result = record.result
    hashed = check_shards(folder, result.checksums[record.label], progress)
    paths = [Path(item.path) for item in result.inputs] if inputs is None else list(inputs)
    theta0 = base or (Path(result.base.path) if result.base else None)
    _check_inputs(result, paths, theta0)
    prepared = prepare_merge(paths, [item.factor for item in result.inputs], [Output(folder, record.scale)],
                             _options(result, theta0))  # fmt: skip
    plan = prepared.plan
    chosen = _choose(plan, blocks, random.Random(seed))
    accumulator = Accumulator(plan, CHUNK)
    merged = Checkpoint.open(folder)
    otherwise = 0
    with FilePool() as files, np.errstate(all="ignore"), progress.bar("verify", total=len(chosen), unit="block") as bar:
        for done, number in enumerate(chosen, 1):
            otherwise += _compare(prepared, accumulator, merged, files, plan.blocks[number], record)
            bar.update(done)
    return VerifyResult(
        shards=len(result.checksums[record.label]),
        bytes_hashed=hashed,
        blocks=len(chosen),
        parameters_recomputed=sum(plan.blocks[number].count for number in chosen),
        parameters=plan.parameters,
        rounded_otherwise=otherwise,
    )


_LAYERS = 4  # tensors that a rule merged; each is solved again, and a few of its rows compared


def _choose(plan: MergePlan, blocks: int, at_random: random.Random) -> list[int]:
    solved = [number for number, block in enumerate(plan.blocks) if plan.tensors[block.tensor].solved]
    summed = [number for number, block in enumerate(plan.blocks) if not plan.tensors[block.tensor].solved]
    chosen = at_random.sample(solved, min(_LAYERS, blocks, len(solved)))
    return chosen + at_random.sample(summed, min(blocks - len(chosen), len(summed)))


_SAME = 1e-5  # of an update's norm: what two computations of one truncation differ by


def verify_adapters(
    folder: Path, *, inputs: Sequence[Path] | None = None, base: Path | None = None, progress: Progress = SILENT
) -> VerifyResult:
    """Hashes the merged adapter in `folder`, and merges its inputs again.

    Raises:
        InputError: the adapter or an input is not what it was; names the file.
    """
    if not (folder / RECORD).is_file():
        raise InputError(f"merit did not merge this folder: it has no {RECORD}", file=folder)
    record = AdapterMergeResult.load(folder / RECORD)
    hashed = check_shards(folder, {WEIGHTS: record.checksum}, progress)
    paths = [Path(item.path) for item in record.inputs] if inputs is None else list(inputs)
    if len(paths) != len(record.inputs):
        raise InputError(f"{len(paths)} inputs given, but {len(record.inputs)} were merged", field="inputs")
    theta0 = base or Path(record.base.path)
    for path, item in zip([*paths, theta0], [*record.inputs, record.base], strict=True):
        if not path.is_dir():
            raise InputError("this input is gone, so nothing can be recomputed; name where it is now", file=path)
        if recorded(path, 0.0, 0.0).fingerprint != item.fingerprint:
            raise InputError("this input changed since it was merged", file=path)
    with tempfile.TemporaryDirectory() as room:
        again = Path(room) / "again"
        weights = [item.factor for item in record.inputs]
        found = merge_adapters(paths, weights, again, base=theta0, rank=record.rank, progress=progress)
        checkpoint = Checkpoint.open(theta0)
        one, two = (Adapter.open(path, checkpoint) for path in (folder, again))
        if difference(one, two) > _SAME * found.update_norm:
            raise InputError("the adapter is not what its inputs give", file=folder / WEIGHTS)
        count = sum(update.a.elements + update.b.elements for update in one.updates.values())
    return VerifyResult(
        shards=1,
        bytes_hashed=hashed,
        blocks=len(one.updates),
        parameters_recomputed=count,
        parameters=count,
        rounded_otherwise=0,
    )


def _options(result: MergeResult, base: Path | None) -> MergeOptions:
    return MergeOptions(
        base=base,
        dtype=result.requested_dtype,
        rounding=result.rounding,
        seed=result.seed,
        shard_bytes=result.shard_bytes,
        rules=tuple(result.rules),
        as_given=True,
        rule=result.rule,
        ridge=result.ridge,
        start=Path(result.start.path) if result.start is not None else None,
        outer=_outer(result),
    )


def _outer(result: MergeResult) -> Outer | None:
    if result.outer is None:
        return None
    settings = OuterConfig(rate=result.outer.rate, momentum=result.outer.momentum)
    return Outer(settings, None if result.outer.before is None else Path(result.outer.before.path))


def check_shards(folder: Path, checksums: dict[str, str], progress: Progress = SILENT) -> int:
    """Hashes the shards of a merged folder; returns how many bytes they have.

    Raises:
        InputError: one is gone, or is not what was written.
    """
    total = 0
    with progress.bar("checksums", total=len(checksums), unit="shard") as bar:
        for done, (name, digest) in enumerate(checksums.items(), 1):
            file = folder / name
            if wrong := damaged(folder, {name: digest}):
                raise InputError(_WRONG[wrong[name]], file=file)
            total += file.stat().st_size
            bar.update(done)
    return total


def _check_inputs(result: MergeResult, paths: Sequence[Path], base: Path | None) -> None:
    if len(paths) != len(result.inputs):
        raise InputError(f"{len(paths)} inputs given, but {len(result.inputs)} were merged", field="inputs")
    further = [item for item in (result.start, result.outer.before if result.outer else None) if item is not None]
    known = [*result.inputs, *([result.base] if result.base else []), *further]
    there = [*paths, *([base] if base and result.base else []), *(Path(item.path) for item in further)]
    for path, item in zip(there, known, strict=True):
        if not path.is_dir():
            raise InputError("this input is gone, so nothing can be recomputed; name where it is now", file=path)
        if weights_fingerprint(path) != item.fingerprint:
            raise InputError("this input changed since it was merged", file=path)


def _compare(
    prepared: PreparedMerge,
    accumulator: Accumulator,
    merged: Checkpoint,
    files: FilePool,
    block: Block,
    record: MergeRecord,
) -> int:
    tensor = prepared.plan.tensors[block.tensor]
    info = merged.info(tensor.name)
    size = ITEM_BYTES[info.dtype]
    step = whole_rows(tensor.row, CHUNK)
    otherwise = 0
    solved = solve(prepared.plan, tensor, files) if tensor.solved else None
    for start in range(block.start, block.start + block.count, step):
        count = min(step, block.start + block.count - start)
        written = np.empty(count * size, np.uint8)
        files.read(info, start * size, written)
        for _, expected in accumulator.chunk(files, tensor, start, count, solved):
            if np.array_equal(written, expected):
                continue
            if solved is not None:
                _check_solved(info, written, expected, start, solved(start, count), record.scale or 0.0)
                continue
            words = [part.view(f"<i{size}").astype(np.int64) for part in (written, expected)]
            steps = np.abs(words[0] - words[1])
            if not record.result.removed or int(steps.max()) > 1:
                at = start + int(np.flatnonzero(steps)[0])
                raise InputError(f"element {at} is not what its inputs give", file=info.file, field=tensor.name)
            otherwise += int(np.count_nonzero(steps))
    return otherwise


def _check_solved(
    info: TensorInfo,
    written: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    start: int,
    step: Float64s,
    scale: float,
) -> None:
    """Other machines and numbers of threads sum in another order: one unit in the last place of the value, and a
    hundred-thousandth of the largest step, may differ.

    Raises:
        InputError: more differs.
    """
    count = step.size
    pair = np.empty((2, count))
    for raw, values in zip((written, expected), pair, strict=True):
        decode(raw, info.dtype, values, Scratch.make(count))
    unit = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-22}.get(info.dtype, 2.0**-50)
    allowed = np.abs(pair[1]) * unit + _SAME * scale * float(np.abs(step).max(initial=0.0))
    wrong = np.flatnonzero(~(np.abs(pair[0] - pair[1]) <= allowed))
    if wrong.size:
        raise InputError(
            f"element {start + int(wrong[0])} is not what its inputs give", file=info.file, field=info.name
        )
