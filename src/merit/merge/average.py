"""`merge_checkpoints`: many checkpoints in, one weighted average out, or several points on its ray, in one read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.config.sections import MEMORY_BYTES, SHARD_BYTES, DtypeName
from merit.merge.execute import execute_merge
from merit.merge.plan import MergeOptions, Output, Rounding, WeightRule
from merit.merge.record import MergeResult
from merit.merge.setup import prepare_merge
from merit.merge.weights import check_weights


def merge_checkpoints(
    inputs: Sequence[Path],
    weights: Sequence[float],
    outputs: Mapping[float, Path],
    *,
    base: Path | None = None,
    dtype: DtypeName = "input",
    rules: Sequence[WeightRule] = (),
    partial: bool = False,
    keep_sums: Path | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> MergeResult:
    """Writes θ0 + β(θ̄ − θ0), θ̄ = Σ n_k θ_k / Σ n_k, for every β of `outputs` (method.md, step 4; β = 1 is the merge).

    Everything is checked before a byte is written. Sums are float64 and rounded once. Each output folder appears
    whole, by a rename; a merge that was killed goes on where it was when it is called again with the same arguments.

    Args:
        inputs: checkpoint folders, or LoRA folders over `base`: of those the updates are averaged, and the output is
            a whole model. One input with a base and β < 1 is WiSE-FT.
        weights: n_k ≥ 0, one an input; whole numbers (tokens, ones) give the most exact sums.
        outputs: β → the folder to write. β ≠ 1 needs `base`.
        base: θ0; also gives the displacements and the meaning of the rounding error.
        dtype: type of the merged weights; `input` keeps each tensor's own.
        rules: other weights for some tensors.
        partial: merge the inputs that are there, and say so in notes and model card; else a missing one is an error.
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
        raise InputError("none of the inputs is there", file=inputs[0])
    kept = [(path, weight) for path, weight in zip(inputs, weights, strict=True) if path not in missing]
    wanted = [Output(folder, float(scale)) for scale, folder in sorted(outputs.items())]
    if keep_sums is not None:
        wanted.append(Output(keep_sums, None))
    options = MergeOptions(base, dtype, rounding, seed, shard_bytes, tuple(rules))
    prepared = prepare_merge([path for path, _ in kept], [weight for _, weight in kept], wanted, options)
    if missing:
        names = ", ".join(path.name for path in missing)
        note = f"partial: {len(missing)} of {len(inputs)} inputs were not there ({names}); weights renormalised"
        prepared = replace(prepared, notes=(*prepared.notes, note))
    return execute_merge(prepared, memory_bytes=memory_bytes, progress=progress)
