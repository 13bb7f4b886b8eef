"""Opens and checks the inputs of a merge, and plans it. Nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.record import fingerprint
from merit.merge.inputs import OpenedInputs, open_inputs
from merit.merge.plan import Factors, MergeOptions, MergePlan, Output, TensorPlan, pick_dtype, plan_merge
from merit.merge.record import MergeInput
from merit.merge.weights import normalised
from merit.models.source import weights_fingerprint

_FORMAT = 1  # raise it when the bytes written change, so that old journals are not resumed


@dataclass(frozen=True)
class PreparedMerge:
    """A checked merge, ready to run."""

    plan: MergePlan
    mark: str  # fingerprint of inputs, weights and options; not of memory or threads, which change no byte
    options: MergeOptions
    inputs: tuple[MergeInput, ...]
    base: MergeInput | None
    config_folder: Path
    side_folders: tuple[Path, ...]  # where tokenizer and the like come from, the first first
    notes: tuple[str, ...]
    late: bool = False  # one source is the running sums of earlier inputs


def prepare_merge(
    paths: Sequence[Path], weights: Sequence[float], outputs: Sequence[Output], options: MergeOptions
) -> PreparedMerge:
    """Reads headers, matches tensors and lays out the outputs.

    Raises:
        InputError: see `merge_checkpoints`.
    """
    # Sums must keep the weights' own scale: a late branch is weighed on it.
    as_given = options.as_given or any(output.scale is None for output in outputs)
    factors = Factors(weights, options.rules, len(paths), as_given=as_given)
    check_outputs(outputs, options)
    opened = open_inputs(paths, options.base)
    tensors = []
    for info in opened.tensors:
        infos = [source.tensors[info.name] for source in opened.sources]
        own, divisor = factors.of(info.name)
        out = pick_dtype(options.dtype, infos)
        tensors.append(TensorPlan(info.name, info.shape, info.elements, out, own, divisor))
    factors.check_used()
    shares = normalised(factors.default)
    inputs = [
        merge_input(path, factor, share) for path, factor, share in zip(paths, factors.default, shares, strict=True)
    ]
    return assemble(opened, tensors, outputs, options, inputs)


def assemble(
    opened: OpenedInputs,
    tensors: Sequence[TensorPlan],
    outputs: Sequence[Output],
    options: MergeOptions,
    inputs: Sequence[MergeInput],
    *,
    late: bool = False,
) -> PreparedMerge:
    """A plan with its fingerprint."""
    plan = plan_merge(
        opened.sources,
        opened.base,
        tensors,
        outputs,
        shard_bytes=options.shard_bytes,
        rounding=options.rounding,
        seed=options.seed,
    )
    folders = [source.path for source in opened.sources]
    base = merge_input(opened.base.path, 0.0, 0.0) if opened.base is not None else None
    mark = fingerprint(
        [_FORMAT, options.rounding, options.seed, options.shard_bytes, [output.label for output in outputs]],
        [[tensor.name, tensor.dtype, tensor.factors, tensor.divisor] for tensor in tensors],
        [[weights_fingerprint(path), _files(path)] for path in folders],
        [base.fingerprint, _files(Path(base.path))] if base is not None else None,
        len(plan.blocks),
    )
    sides = (*folders, *([opened.base.path] if opened.base is not None else []))
    return PreparedMerge(plan, mark, options, tuple(inputs), base, opened.config_folder, sides, opened.notes, late)


def merge_input(path: Path, factor: float, share: float) -> MergeInput:
    """How an input is recorded."""
    return MergeInput(path=str(path.absolute()), factor=factor, weight=share, fingerprint=weights_fingerprint(path))


def check_outputs(outputs: Sequence[Output], options: MergeOptions) -> None:
    """Refuses outputs that cannot be written.

    Raises:
        InputError: none, two of one name, or a β that needs a base.
    """
    if not outputs:
        raise InputError("nothing to write: no output is named", field="output")
    folders = [output.folder.resolve() for output in outputs]
    if len(set(folders)) != len(folders):
        raise InputError("two outputs have one name", file=outputs[0].folder, field="output")
    for output in outputs:
        if output.scale is None:
            if options.rules:
                raise InputError("running sums cannot be kept where tensors are weighed by rules", field="rules")
        elif not math.isfinite(output.scale) or output.scale < 0:
            raise InputError(f"{output.scale} is no point on the ray; use 0 < β ≤ 10, 1 is the merge", field="scale")
        elif output.scale != 1.0 and options.base is None:
            raise InputError(
                f"β = {output.scale:g} needs θ0: the merge is pulled toward it; name it as base", field="scale"
            )


def _files(folder: Path) -> list[list[object]]:
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.glob("*.safetensors"))]
