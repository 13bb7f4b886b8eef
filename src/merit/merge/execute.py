"""Carries a prepared merge out: stage, stream, sum up, publish."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import Counter
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import disk_errors, write_text
from merit.base.kept import checksums, damaged, files_below
from merit.base.progress import SILENT, Progress
from merit.config.sections import MEMORY_BYTES
from merit.merge.card import CARD, merge_card
from merit.merge.journal import NAME as JOURNAL
from merit.merge.journal import Journal
from merit.merge.lora import AdapterSource, one_blas_thread
from merit.merge.plan import MergePlan
from merit.merge.record import RECORD, MergeRecord, MergeResult
from merit.merge.setup import PreparedMerge
from merit.merge.source import copy_side_files, dtype_name, write_config
from merit.merge.staging import Staging
from merit.merge.stream import BlockStream, split_memory

_ROUNDING_WARNING = 0.05  # of ‖θ_out − θ0‖

_log = logging.getLogger(__name__)


def execute_merge(
    prepared: PreparedMerge, *, memory_bytes: int = MEMORY_BYTES, progress: Progress = SILENT
) -> MergeResult:
    """Writes every output of `prepared`.

    Raises:
        InputError: NaN or infinity in an input, an output that exists, a budget too small. Nothing is left behind.
        StageError: the disk is full. Finished blocks are kept, and a rerun resumes.
    """
    started = time.monotonic()
    plan = prepared.plan
    threads, elements = split_memory(memory_bytes)
    staging = Staging(plan.outputs)
    staging.check(prepared.side_folders)
    journal = staging.open(prepared.mark)
    try:
        if journal.ready:
            result = _check_ready(staging, journal)
        else:
            stream = BlockStream(plan, staging.folders, journal, threads, elements)
            adapters = any(isinstance(source, AdapterSource) for source in plan.sources)
            with (
                one_blas_thread() if adapters else nullcontext(),
                progress.bar("merge", total=stream.megabytes, unit="MB") as bar,
            ):
                checksums = stream.run(bar)
            result = _summarise(prepared, journal, checksums, time.monotonic() - started)
            with disk_errors(plan.outputs[0].folder):
                journal.finish(_complete(prepared, staging.folders, result))
        staging.publish()
    except InputError:
        staging.discard()
        raise
    except StageError:
        if not journal.done:
            staging.discard()
        raise
    finally:
        journal.close()
    for note in result.notes:
        _log.warning(note)
    return result


def _check_ready(staging: Staging, journal: Journal) -> MergeResult:
    """The result of a merge that was whole when it was killed.

    Raises:
        StageError: it is not whole any more, and is removed.
    """
    for folder, files in zip(staging.folders, journal.files, strict=True):
        # What is not here any more is in place already.
        if folder.is_dir() and damaged(folder, files):
            staging.discard()
            raise StageError(f"{folder}: what the interrupted merge left is damaged; run again to begin anew")
    return MergeRecord.load(staging.folders[0] / RECORD).result


def _complete(prepared: PreparedMerge, folders: list[Path], result: MergeResult) -> list[dict[str, str]]:
    """Writes all but the shards; returns each folder's files with their SHA-256."""
    plan, found = prepared.plan, []
    for folder, output, shards in zip(folders, plan.outputs, plan.shards, strict=True):
        sums = result.checksums[output.label]
        for path in [*folder.iterdir()]:
            if path.name not in (*sums, JOURNAL):  # a kill may have left half a file
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        dtype = _main_dtype(plan) if output.scale is not None else "F64"
        shards.write_index(folder)
        write_config(prepared.config_folder, folder, dtype)
        copy_side_files(prepared.side_folders, folder)
        record = MergeRecord(scale=output.scale, result=result)
        record.save(folder / RECORD)
        write_text(folder / CARD, merge_card(record, output.folder.name))
        found.append(sums | checksums(folder, files_below(folder, *sums, JOURNAL)))
    return found


def _summarise(
    prepared: PreparedMerge, journal: Journal, checksums: list[dict[str, str]], seconds: float
) -> MergeResult:
    plan = prepared.plan
    count = len(plan.sources)
    rows = [journal.done[number] for number in sorted(journal.done)]
    norms = [math.sqrt(math.fsum(row[n] for row in rows)) for n in range(count + 2 * len(plan.outputs))]
    moved = {output.label: norms[count + 2 * n] for n, output in enumerate(plan.outputs) if output.scale is not None}
    lost = {output.label: norms[count + 2 * n + 1] for n, output in enumerate(plan.outputs) if output.label in moved}
    ratios = {label: _ratio(lost[label], moved[label]) for label in moved} if plan.base is not None else {}
    notes = [*prepared.notes]
    for label, ratio in ratios.items():
        if ratio > _ROUNDING_WARNING:
            notes.append(
                f"rounding to {dtype_name(_main_dtype(plan))} moves the merge (β = {label}) by {ratio:.0%} of its own "
                "distance from θ0; write float32 to keep the whole update"
            )
    return MergeResult(
        mark=prepared.mark,
        inputs=list(prepared.inputs),
        base=prepared.base,
        weights=[item.weight for item in prepared.inputs],
        rules=list(prepared.options.rules),
        displacement=moved if plan.base is not None else {},
        branch_displacement=norms[:count] if plan.base is not None and not prepared.late else [],
        rounding_norm=lost,
        rounding_error=ratios,
        dtype=dtype_name(_main_dtype(plan)),
        requested_dtype=prepared.options.dtype,
        rounding=plan.rounding,
        seed=plan.seed,
        shard_bytes=prepared.options.shard_bytes,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=plan.shards[0].nbytes,
        seconds=round(seconds, 3),
        checksums={output.label: sums for output, sums in zip(plan.outputs, checksums, strict=True)},
        removed=any(factor < 0 for tensor in plan.tensors[:1] for factor in tensor.factors),
        notes=notes,
        version=_version(),
    )


def _main_dtype(plan: MergePlan) -> str:
    sizes: Counter[str] = Counter()
    for tensor in plan.tensors:
        sizes[tensor.dtype] += tensor.elements
    return sizes.most_common(1)[0][0]


def _ratio(error: float, moved: float) -> float:
    if moved:
        return error / moved
    return 1.0 if error else 0.0  # the whole update was lost, or there was none


def _version() -> str:
    try:
        return metadata.version("merit-tuning")
    except metadata.PackageNotFoundError:
        return "not installed"  # run from its source
