"""MergePlan: everything a merge will do, worked out before a byte is written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merit.base.errors import InputError
from merit.base.record import Record
from merit.config.sections import SHARD_BYTES, DtypeName
from merit.merge.source import Source
from merit.merge.weights import check_weights, exact_factors
from merit.models.checkpoint import TensorInfo
from merit.models.writer import OutTensor, ShardPlan, out_tensor

BLOCK_ELEMENTS = 1 << 20  # of a block: the unit that is handed out, journaled and resumed
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Output:
    """A folder to be written: the point θ0 + β(θ̄ − θ0), or (`scale` None) the running sums Σ n_k θ_k in float64."""

    folder: Path
    scale: float | None

    @property
    def label(self) -> str:
        return "sums" if self.scale is None else f"{self.scale:g}"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: θ̄ = Σ_k factors_k θ_k / divisor."""

    name: str
    shape: tuple[int, ...]
    elements: int
    dtype: str  # of the merged tensor
    factors: tuple[float, ...]
    divisor: float

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

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    def out_dtype(self, tensor: TensorPlan, output: Output) -> str:
        """Running sums keep float64; everything else has the merged type."""
        return "F64" if output.scale is None else tensor.dtype


def pick_dtype(wanted: DtypeName, infos: Sequence[TensorInfo]) -> str:
    """safetensors' name of the output type. `input`: the inputs' own; where they differ, one that holds them all."""
    if wanted != "input":
        return _TYPES[wanted]
    found = {info.dtype for info in infos}
    if len(found) == 1:
        return found.pop()
    return "F64" if "F64" in found else "F32"


def plan_merge(
    sources: Sequence[Source],
    base: Source | None,
    tensors: Sequence[TensorPlan],
    outputs: Sequence[Output],
    *,
    shard_bytes: int,
    rounding: Rounding,
    seed: int,
) -> MergePlan:
    """Lays out shards, and cuts the work into blocks in the order of their bytes."""
    shards = []
    for output in outputs:
        out: list[OutTensor] = []
        for tensor in tensors:
            dtype = "F64" if output.scale is None else tensor.dtype
            out.append(out_tensor(tensor.name, dtype, tensor.shape, tensor.elements))
        shards.append(ShardPlan.make(out, shard_bytes))
    places = shards[0].places
    order = sorted(range(len(tensors)), key=lambda index: places[tensors[index].name])
    blocks = tuple(block for index in order for block in _blocks(index, tensors[index]))
    return MergePlan(tuple(sources), base, tuple(tensors), blocks, tuple(outputs), tuple(shards), rounding, seed)


def whole_rows(row: int, limit: int) -> int:
    """The largest number of elements ≤ `limit` that is whole rows; `limit` itself where one row is longer."""
    return row * (limit // row) if 0 < row <= limit else limit


def _blocks(index: int, tensor: TensorPlan) -> list[Block]:
    step = whole_rows(tensor.row, BLOCK_ELEMENTS)
    return [Block(index, at, min(step, tensor.elements - at)) for at in range(0, tensor.elements, step)]


class WeightRule(Record):
    """Other weights for the tensors whose name `pattern` (a regular expression) is found in; the first match counts."""

    pattern: str
    weights: list[float]


@dataclass(frozen=True)
class MergeOptions:
    """See `merge_checkpoints`."""

    base: Path | None = None
    dtype: DtypeName = "input"
    rounding: Rounding = "nearest"
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    rules: tuple[WeightRule, ...] = ()
    as_given: bool = False  # keep equal weights as they are, instead of as ones


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
        """Refuses a rule that no tensor was weighed by: a misspelt one would be passed over in silence.

        Raises:
            InputError: names the pattern.
        """
        for pattern, _ in self._rules:
            if pattern.pattern not in self._used:
                raise InputError("no tensor matches this pattern first", field=f"rules.{pattern.pattern}")
