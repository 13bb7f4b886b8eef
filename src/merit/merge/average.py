"""Many checkpoints in, one weighted average out, or several points on its ray, in one read.

`merge_checkpoints` merges; `add_branch` and `remove_branch` change a merge whose running sums Σ n_k θ_k were kept.
Adding a branch gives the bytes that merging all of them, this one last, would have given: the same additions in the
same order. Removing one subtracts what was added. With whole-number weights (tokens, ones) the sums are exact wherever
they fit 53 bits, and so is what is left; otherwise a value that lies within a unit or two of the 53rd bit of a tie may
round to its other neighbour.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import disk_errors, write_text
from merit.base.kept import checksums, damaged, files_below
from merit.base.progress import SILENT, Progress
from merit.config.sections import DTYPE, MEMORY_BYTES, ROUNDING, SHARD_BYTES, DtypeName, Rounding
from merit.merge.card import CARD, merge_card
from merit.merge.inputs import dtype_name, open_inputs, write_config
from merit.merge.lora import AdapterSource, blas_threads
from merit.merge.outer import Outer
from merit.merge.plan import (
    DEFAULTS,
    MergeOptions,
    MergePlan,
    Output,
    PreparedMerge,
    TensorPlan,
    assemble,
    check_outputs,
    merge_input,
    outer_record,
    pick_dtype,
    prepare_merge,
)
from merit.merge.record import RECORD, MergeInput, MergeRecord, MergeResult, WeightRule, load_record
from merit.merge.side_files import copy_side_files
from merit.merge.staging import JOURNAL, Journal, Staging
from merit.merge.stream import BlockStream, side_by_side, split_memory
from merit.merge.weights import check_weights, normalised
from merit.models.checkpoint import WHOLE
from merit.models.source import weights_fingerprint

_ROUNDING_WARNING = 0.05  # of ‖θ_out − θ0‖
_log = logging.getLogger(__name__)


def merge_checkpoints(
    inputs: Sequence[Path],
    weights: Sequence[float],
    outputs: Mapping[float, Path],
    *,
    base: Path | None = None,
    dtype: DtypeName = DTYPE,
    rules: Sequence[WeightRule] = (),
    rule: str | None = None,
    ridge: float | None = None,
    device: str | None = None,
    start: Path | None = None,
    outer: Outer | None = None,
    trust_remote_code: bool = False,
    partial: bool = False,
    keep_sums: Path | None = None,
    rounding: Rounding = ROUNDING,
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> MergeResult:
    """Writes θ0 + β(θ̄ − θ0), θ̄ = Σ n_k θ_k / Σ n_k, for every β of `outputs` (method.md, step 4; β = 1 is the merge).

    Everything is checked before a byte is written. Sums are float64 and rounded once. Each output folder appears
    whole, by a rename. Called again with the same arguments, a merge that was killed continues where it stopped.

    Args:
        inputs: checkpoint folders, or LoRA folders over `base`: their updates are averaged, and the output is a whole
            model. One input with a base and β < 1 is WiSE-FT.
        weights: n_k ≥ 0, one an input; whole numbers (tokens, ones) give the most exact sums.
        outputs: β → the folder to write. β ≠ 1 needs `base`.
        base: θ0; with it, displacements and the relative rounding error are measured.
        dtype: type of the merged weights; `input` keeps each tensor's own.
        rules: other weights for some tensors.
        rule: a merge rule that is no average, by its name; it needs `base`, and `weights` weigh what it averages.
        ridge: of that rule; None: its default.
        device: of torch, such as `cuda`, that solves the rule's linear layers; the last bits of the sums may differ.
        start: what the branches were trained from, and the rule's steps are taken from, where it is not `base`.
        outer: an outer step from `start` toward the merge, instead of the merge itself; it needs `base`.
        trust_remote_code: the base's own code may say which tensors are linear layers' weights.
        partial: merge the inputs that exist, and note the missing ones in the model card; else these are an error.
        keep_sums: a folder for Σ n_k θ_k in float64, so that `add_branch` can add a late branch exactly.
        rounding: to the nearest, or at random between both neighbours (`stochastic`, by `seed`).
        memory_bytes: budget of all buffers; does not depend on K or on the model.
        shard_bytes: largest output shard, in bytes.

    Raises:
        InputError: bad weights, inputs that do not fit together, NaN or infinity in one, an output that exists.
        StageError: the disk is full; free some and call again.
    """
    check_weights(weights, len(inputs))
    missing = [path for path in inputs if not path.is_dir()] if partial else []
    if missing and len(missing) == len(inputs):
        raise InputError("none of the inputs exists", file=inputs[0])
    there = [(path, weight) for path, weight in zip(inputs, weights, strict=True) if path not in missing]
    options = MergeOptions(
        base,
        dtype,
        rounding,
        seed,
        shard_bytes,
        memory_bytes,
        tuple(rules),
        rule=rule,
        ridge=ridge,
        device=device,
        start=start,
        outer=outer,
        trust_remote_code=trust_remote_code,
    )
    paths, given = [path for path, _ in there], [weight for _, weight in there]
    wanted = _outputs(outputs, keep_sums)
    if outer is not None and outer.keep is not None:
        wanted.append(Output(outer.keep, None, momentum=True))
    prepared = prepare_merge(paths, given, wanted, options)
    if missing:
        names = ", ".join(path.name for path in missing)
        note = f"partial: {len(missing)} of {len(inputs)} inputs were missing ({names}); weights renormalised"
        prepared = replace(prepared, notes=(*prepared.notes, note))
    return execute_merge(prepared, progress)


def add_branch(
    sums: Path,
    branch: Path,
    weight: float,
    outputs: Mapping[float, Path],
    *,
    keep_sums: Path | None = None,
    options: MergeOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> MergeResult:
    """Merges a late branch of weight n into the merge whose running sums are in `sums`.

    The weight is on the scale of the earlier ones (tokens with tokens; 1 where all were equal).

    Raises:
        InputError: no running sums, a weight that cannot weigh, or a branch that does not fit.
    """
    (factor,) = check_weights([weight], 1)
    inputs = [*_summed(sums), merge_input(branch, factor, 0.0)]  # its share follows
    return _change(_Change(sums, branch, factor, inputs), outputs, keep_sums, options, progress)


def remove_branch(
    sums: Path,
    branch: Path,
    outputs: Mapping[float, Path],
    *,
    keep_sums: Path | None = None,
    options: MergeOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> MergeResult:
    """Takes one of its branches out of the merge whose running sums are in `sums`.

    Raises:
        InputError: no running sums; or `branch` is not in them, or is all that they hold.
    """
    known = _summed(sums)
    mark = weights_fingerprint(branch)
    gone = next((item for item in known if item.fingerprint == mark), None)
    if gone is None:
        raise InputError(f"none of the branches in {sums} has its weights", file=branch)
    left = [item for item in known if item is not gone]
    if not left:
        raise InputError("the only branch in these sums; nothing would be left", file=branch)
    return _change(_Change(sums, branch, -gone.factor, left), outputs, keep_sums, options, progress)


@dataclass(frozen=True)
class _Change:
    """One branch more or one less: `factor` × its weights join the sums, which are then those of `inputs`."""

    sums: Path
    branch: Path
    factor: float
    inputs: Sequence[MergeInput]


def _change(
    change: _Change,
    outputs: Mapping[float, Path],
    keep_sums: Path | None,
    options: MergeOptions,
    progress: Progress,
) -> MergeResult:
    wanted = _outputs(outputs, keep_sums)
    check_outputs(wanted, options)
    opened = open_inputs([change.sums, change.branch], options.base)
    factors = [item.factor for item in change.inputs]
    shares = normalised(check_weights(factors, len(factors)))
    inputs = [item.model_copy(update={"weight": share}) for item, share in zip(change.inputs, shares, strict=True)]
    divisor = math.fsum(factors)
    tensors = []
    for info in opened.tensors:
        out = pick_dtype(options.dtype, [opened.sources[1].tensors[info.name]])
        tensors.append(
            TensorPlan(
                info.name, info.shape, info.elements, out, (1.0, change.factor), divisor, opened.twins.get(info.name)
            )
        )
    return execute_merge(replace(assemble(opened, tensors, wanted, options, inputs), late=True), progress)


def _summed(folder: Path) -> list[MergeInput]:
    record = load_record(folder)
    if record.scale is not None:
        raise InputError("a merge, but not its running sums; `keep_sums` writes those", file=folder)
    return record.result.inputs


def _outputs(outputs: Mapping[float, Path], keep_sums: Path | None) -> list[Output]:
    wanted = [Output(folder, float(scale)) for scale, folder in sorted(outputs.items())]
    return [*wanted, Output(keep_sums, None)] if keep_sums is not None else wanted


def execute_merge(prepared: PreparedMerge, progress: Progress = SILENT) -> MergeResult:
    """Writes every output of `prepared`.

    Raises:
        InputError: NaN or infinity in an input, an output that exists, a budget too small. Nothing is left behind.
        StageError: the disk is full. Finished blocks are kept, and a rerun resumes.
    """
    started = time.monotonic()
    plan = prepared.plan
    threads, elements = split_memory(prepared.options.memory_bytes)
    staging = Staging(plan.outputs)
    staging.check(prepared.side_folders)
    journal = staging.open(prepared.mark)
    try:
        if journal.ready:
            result = _check_ready(staging, journal)
        else:
            stream = BlockStream(plan, staging.folders, journal, threads, elements)
            # Otherwise solving uses all cores for one tensor.
            alone = side_by_side(plan, threads)
            alone |= plan.solver is None and any(isinstance(source, AdapterSource) for source in plan.sources)
            with (
                blas_threads(1) if alone else nullcontext(),
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
    """The result of a merge that was killed after its last byte was written.

    Raises:
        StageError: its files are damaged now; they are removed.
    """
    for folder, files in zip(staging.folders, journal.files, strict=True):
        # A folder that is not here was renamed into place already.
        if folder.is_dir() and damaged(folder, files):
            staging.discard()
            raise StageError(f"{folder}: the interrupted merge left damaged files; run again to start over")
    return MergeRecord.load(staging.folders[0] / RECORD).result


def _complete(prepared: PreparedMerge, folders: list[Path], result: MergeResult) -> list[dict[str, str]]:
    """Writes all but the shards; returns each folder's files with their checksums."""
    plan, found = prepared.plan, []
    for folder, output, shards in zip(folders, plan.outputs, plan.shards, strict=True):
        sums = result.checksums[output.label]
        for path in [*folder.iterdir()]:
            if path.name not in (*sums, JOURNAL):  # a kill may have left half a file
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if output.momentum:
            found.append(sums)
            continue
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
    if plan.solver is not None and 0 in norms[:count]:
        path = Path(prepared.inputs[norms.index(0)].path)
        raise InputError("has the weights that it started from: nothing was trained", file=path)
    notes = [*prepared.notes]
    if plan.base is not None and not prepared.late:
        still = [source.path for source, norm in zip(plan.sources, norms[:count], strict=True) if norm == 0]
        notes += [f"{path} equals θ0: it was not trained, or its training was not saved" for path in still]
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
        rule=prepared.options.rule,
        ridge=plan.solver.ridge if plan.solver is not None else None,
        start=None if prepared.options.start is None else merge_input(prepared.options.start, 0.0, 0.0),
        outer=None if prepared.options.outer is None else outer_record(prepared.options.outer),
        solved=sum(tensor.solved for tensor in plan.tensors),
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
        if tensor.dtype not in WHOLE:
            sizes[tensor.dtype] += tensor.elements
    if not sizes:
        raise InputError("nothing to merge: the inputs hold whole numbers alone", field="inputs")
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
