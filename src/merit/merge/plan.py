"""MergePlan: the inputs opened and checked, and everything a merge will do worked out. Nothing is written here."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.base.record import fingerprint
from merit.config.sections import DTYPE, MEMORY_BYTES, ROUNDING, SHARD_BYTES, DtypeName, Rounding
from merit.merge.inputs import OpenedInputs, Source, open_inputs
from merit.merge.outer import Outer, OuterStep, open_outer
from merit.merge.record import MergeInput, OuterRecord, WeightRule
from merit.merge.rule import find_rule
from merit.merge.side_files import check_side_files, side_marks
from merit.merge.solver import Solver, make_solver
from merit.merge.weights import check_weights, exact_factors, normalised
from merit.models.adapter import is_adapter
from merit.models.checkpoint import WHOLE, TensorInfo
from merit.models.source import weights_fingerprint
from merit.models.writer import ShardPlan, out_tensor

BLOCK_ELEMENTS = 1 << 20  # of a block: the unit that is handed out, journaled and resumed
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FORMAT = 4  # raise it when the bytes written, or what the journal holds, change: old ones are not resumed


@dataclass(frozen=True)
class Output:
    """A folder to be written: the point θ0 + β(θ̄ − θ0), or (`scale` None) the running sums Σ n_k θ_k in float64, or
    (`momentum`) the outer optimizer's momentum in float32."""

    folder: Path
    scale: float | None
    momentum: bool = False

    @property
    def label(self) -> str:
        if self.scale is None:
            return "momentum" if self.momentum else "sums"
        return f"{self.scale:g}"

    @property
    def is_sums(self) -> bool:
        """Whether it holds running sums."""
        return self.scale is None and not self.momentum

    def dtype(self, merged: str) -> str:
        """The type it is written in, of a tensor that is merged in the type `merged`."""
        if self.scale is None:
            return "F32" if self.momentum else "F64"
        return merged


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: θ̄ = Σ_k factors_k θ_k / divisor."""

    name: str
    shape: tuple[int, ...]
    elements: int
    dtype: str  # of the merged tensor
    factors: tuple[float, ...]
    divisor: float
    twin: str | None = None  # the embeddings, of a tied head: weighed and rounded as they are
    solved: bool = False  # by a rule that is no average: θ0 plus what the plan's solver gives

    @property
    def row(self) -> int:
        """Elements of the last dimension."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class Block:
    """Elements `start` to `start + count` of tensor number `tensor`."""

    tensor: int
    start: int
    count: int


@dataclass(frozen=True)
class MergePlan:
    """Inputs, outputs and the work between. `sources` are the K inputs, `base` is θ0."""

    sources: tuple[Source, ...]
    base: Source | None
    tensors: tuple[TensorPlan, ...]
    blocks: tuple[Block, ...]
    outputs: tuple[Output, ...]
    shards: tuple[ShardPlan, ...]  # one an output
    rounding: Rounding
    seed: int
    solver: Solver | None = None
    outer: OuterStep | None = None

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    def out_dtype(self, tensor: TensorPlan, output: Output) -> str:
        """What `output` is written in."""
        return output.dtype(tensor.dtype)


def pick_dtype(wanted: DtypeName, infos: Sequence[TensorInfo]) -> str:
    """safetensors' name of the output type. `input`: the inputs' own; where they differ, one that holds them all."""
    found = {info.dtype for info in infos}
    if found <= set(WHOLE):
        return min(found)
    if wanted != "input":
        return _TYPES[wanted]
    if len(found) == 1:
        return found.pop()
    return "F64" if "F64" in found else "F32"


def whole_rows(row: int, limit: int) -> int:
    """The largest number of elements ≤ `limit` that is whole rows; `limit` itself where one row is longer."""
    return row * (limit // row) if 0 < row <= limit else limit


def _blocks(index: int, tensor: TensorPlan) -> list[Block]:
    step = tensor.elements if tensor.solved else whole_rows(tensor.row, BLOCK_ELEMENTS)
    return [Block(index, at, min(step, tensor.elements - at)) for at in range(0, tensor.elements, max(1, step))]


@dataclass(frozen=True)
class MergeOptions:
    """See `merge_checkpoints`."""

    base: Path | None = None
    dtype: DtypeName = DTYPE
    rounding: Rounding = ROUNDING
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    memory_bytes: int = MEMORY_BYTES
    rules: tuple[WeightRule, ...] = ()
    as_given: bool = False  # keep equal weights as they are, instead of as ones
    rule: str | None = None  # that is no average
    ridge: float | None = None  # None: the rule's default
    device: str | None = None  # of torch, that solves the rule's linear layers
    start: Path | None = None  # what the rule's steps are taken from, where it is not `base`
    trust_remote_code: bool = False
    outer: Outer | None = None


DEFAULTS = MergeOptions()


class Factors:
    """n_k and their sum for each tensor."""

    def __init__(
        self, weights: Sequence[float], rules: Sequence[WeightRule], inputs: int, *, as_given: bool = False
    ) -> None:
        """`as_given` keeps equal weights from becoming ones.

        Raises:
            InputError: weights that cannot weigh, or a pattern that is no regular expression.
        """
        checked = check_weights(weights, inputs)
        self.default = tuple(checked if as_given else exact_factors(checked))
        self._rules: list[tuple[re.Pattern[str], tuple[float, ...]]] = []
        for rule in rules:
            try:
                pattern = re.compile(rule.pattern)
            except re.error as error:
                raise InputError(f"not a regular expression: {error}", field=f"rules.{rule.pattern}") from error
            self._rules.append((pattern, tuple(exact_factors(check_weights(rule.weights, inputs)))))
        self._used: set[str] = set()

    def of(self, name: str) -> tuple[tuple[float, ...], float]:
        """Factors and divisor of one tensor."""
        for pattern, factors in self._rules:
            if pattern.search(name):
                self._used.add(pattern.pattern)
                return factors, math.fsum(factors)
        return self.default, math.fsum(self.default)

    def check_used(self) -> None:
        """Refuses a rule that no tensor matched: a misspelt one would be ignored in silence.

        Raises:
            InputError: names the pattern.
        """
        for pattern, _ in self._rules:
            if pattern.pattern not in self._used:
                raise InputError("no tensor matches this pattern first", field=f"rules.{pattern.pattern}")


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
    as_given = options.as_given or any(output.is_sums for output in outputs)
    factors = Factors(weights, options.rules, len(paths), as_given=as_given)
    check_outputs(outputs, options)
    opened = open_inputs(paths if options.start is None else [*paths, options.start], options.base)
    start: Source | None = opened.base
    if options.start is not None:
        if (adapter := next(filter(is_adapter, paths), None)) is not None:
            raise InputError("an adapter is a step from its base: `start` is for whole models", file=adapter)
        *sources, start = opened.sources
        opened = replace(opened, sources=tuple(sources))
    solver = None if options.rule is None else _solver(options, weights, outputs, opened, start)
    tensors = []
    for info in opened.tensors:
        infos = [source.tensors[info.name] for source in opened.sources]
        twin = opened.twins.get(info.name)
        own, divisor = factors.of(twin or info.name)
        out = pick_dtype(options.dtype, infos)
        solved = solver is not None and solver.treats(info)
        tensors.append(TensorPlan(info.name, info.shape, info.elements, out, own, divisor, twin, solved))
    factors.check_used()
    outer = None
    if options.outer is not None:
        outer = open_outer(options.outer, start, {tensor.name: tensor for tensor in opened.tensors})
    shares = normalised(factors.default)
    inputs = [
        merge_input(path, factor, share) for path, factor, share in zip(paths, factors.default, shares, strict=True)
    ]
    return assemble(opened, tensors, outputs, options, inputs, (solver, outer))


def _solver(
    options: MergeOptions,
    weights: Sequence[float],
    outputs: Sequence[Output],
    opened: OpenedInputs,
    start: Source | None,
) -> Solver:
    rule = find_rule(str(options.rule))
    if not rule.is_solved:
        raise InputError(f"{options.rule!r} is no rule that merges without the branches' data", field="rule")
    if options.rules or any(output.is_sums for output in outputs):
        what = "rules" if options.rules else "keep_sums"
        raise InputError(f"the {rule.label} is no weighted sum of the branches: leave this out", field=what)
    ridge = rule.ridge if options.ridge is None else options.ridge
    device, trusted = options.device, options.trust_remote_code
    return make_solver(rule, weights, ridge, opened, start, device=device, trust_remote_code=trusted)


def assemble(
    opened: OpenedInputs,
    tensors: Sequence[TensorPlan],
    outputs: Sequence[Output],
    options: MergeOptions,
    inputs: Sequence[MergeInput],
    further: tuple[Solver | None, OuterStep | None] = (None, None),
) -> PreparedMerge:
    """Lays out the shards, cuts the work into blocks in the order of their bytes, and takes the fingerprint."""
    solver, outer = further
    first = _lay_out(tensors, outputs[0], options.shard_bytes)
    order = sorted(range(len(tensors)), key=lambda index: first.places[tensors[index].name])
    # Blocks come in the order of the first output's bytes, and hashes follow them: all other outputs have that order,
    # too. Points of one ray lie alike; sums and momentum are of one type, so they keep the order that they are given.
    in_order = [tensors[index] for index in order]
    others = [
        first if output.scale is not None else _lay_out(in_order, output, options.shard_bytes) for output in outputs[1:]
    ]
    plan = MergePlan(
        sources=opened.sources,
        base=opened.base,
        tensors=tuple(tensors),
        blocks=tuple(block for index in order for block in _blocks(index, tensors[index])),
        outputs=tuple(outputs),
        shards=(first, *others),
        rounding=options.rounding,
        seed=options.seed,
        solver=solver,
        outer=outer,
    )
    folders = [source.path for source in opened.sources]
    base = merge_input(opened.base.path, 0.0, 0.0) if opened.base is not None else None
    sides = (*folders, *([opened.base.path] if opened.base is not None else []))
    check_side_files(sides)
    known = {Path(item.path): item.fingerprint for item in inputs}
    mark = fingerprint(
        [_FORMAT, options.rounding, options.seed, options.shard_bytes, [output.label for output in outputs]],
        [[one.name, one.dtype, one.factors, one.divisor, *(["solved"] if one.solved else [])] for one in tensors],
        [[known.get(path.absolute()) or weights_fingerprint(path), _files(path)] for path in folders],
        [base.fingerprint, _files(Path(base.path))] if base is not None else None,
        len(plan.blocks),
        [_text(path / "adapter_config.json") for path in folders],
        _text(opened.config_folder / "config.json"),
        side_marks(sides),
        *([[options.rule, solver.ridge, solver.shares]] if solver is not None else []),
        *extensions.marks("rules", str(options.rule)),
        *([options.device] if options.device is not None else []),
        *([[_text(sketch.file) for sketch in solver.sketches]] if solver is not None and solver.sketches else []),
        *([weights_fingerprint(options.start)] if options.start is not None else []),
        *(_outer_mark(options.outer) if options.outer is not None else []),
    )
    return PreparedMerge(plan, mark, options, tuple(inputs), base, opened.config_folder, sides, opened.notes)


def _lay_out(tensors: Sequence[TensorPlan], output: Output, shard_bytes: int) -> ShardPlan:
    out = [out_tensor(one.name, output.dtype(one.dtype), one.shape, one.elements) for one in tensors]
    return ShardPlan.make(out, sys.maxsize if output.momentum else shard_bytes)


def merge_input(path: Path, factor: float, share: float) -> MergeInput:
    """How an input is recorded."""
    return MergeInput(path=str(path.absolute()), factor=factor, weight=share, fingerprint=weights_fingerprint(path))


def _outer_mark(outer: Outer) -> list[object]:
    return [outer.settings, None if outer.before is None else weights_fingerprint(outer.before)]


def outer_record(outer: Outer) -> OuterRecord:
    """How an outer step is recorded."""
    before = None if outer.before is None else merge_input(outer.before, 0.0, 0.0)
    return OuterRecord(rate=outer.settings.rate, momentum=outer.settings.momentum, before=before)


def check_outputs(outputs: Sequence[Output], options: MergeOptions) -> None:
    """Refuses outputs that cannot be written.

    Raises:
        InputError: none, two of one name, or a β that needs a base.
    """
    if not outputs:
        raise InputError("nothing to write: no output is named", field="output")
    folders = [output.folder.resolve() for output in outputs]
    if len(set(folders)) != len(folders):
        raise InputError("two outputs have the same name", file=outputs[0].folder, field="output")
    for output in outputs:
        if output.scale is None:
            if output.is_sums and (options.rules or options.outer is not None):
                what = "rules" if options.rules else "outer"
                said = {"rules": "where tensors are weighed by rules", "outer": "of a merge with an outer step"}
                raise InputError(f"running sums cannot be kept {said[what]}", field=what)
        elif not math.isfinite(output.scale) or output.scale < 0:
            raise InputError(f"{output.scale} is not a valid β; use 0 < β ≤ 10 (1 is the merge)", field="scale")
        elif output.scale != 1.0 and options.base is None:
            raise InputError(
                f"β = {output.scale:g} needs θ0: the merge is pulled toward it; name it as base", field="scale"
            )


def _text(file: Path) -> str | None:
    return sha256_file(file) if file.is_file() else None


def _files(folder: Path) -> list[list[object]]:
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.glob("*.safetensors"))]
