"""How a gradient is kept: parameter name and shape → the linear sums that stand for it. No torch here.

The **fold** is a one-sided signed count sketch. A weight matrix W (outputs o × inputs i) has the gradient
G = dYᵀX (o×i); the fold keeps G S (o × ⌈i/f⌉, or × 16), where column j of G goes, times a random sign, into a random
bucket. For any two gradients E⟨G S, H S⟩ = ⟨G, H⟩ over the signs: inner products, hence cosines, are unbiased, at 1/f
of the numbers. Because G S = dYᵀ(X S), the sketch can be had without ever forming G.

A row may be **hashed** once more: a count sketch of all its numbers into `hashed` of them, again unbiased.

Signs and buckets depend on (seed, parameter name, size) alone, through SHA-256 and the *raw* output of the Philox
counter generator, which NumPy promises never to change: any process, rank or year makes the same sketch.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import Record
from merit.config.calibration import CalibrationConfig

# Where a matrix has few inputs, ⌈i/f⌉ buckets are too few: two outlier columns then fall into one often, and their
# product is the error. 135M parameters, six buckets (fold 100): largest error of a cosine 0.03 to 0.06 by seed, most of
# it from the embedding; sixteen: 0.02 to 0.03. Matrices of more than 1,600 inputs are not affected.
LEAST = 16

SketchKind = Literal["fold", "flat", "full"]


class SketchSpec(Record):
    """The rule, before it meets a model."""

    kind: SketchKind
    fold: int = 1  # inputs summed into one (fold)
    least: int = LEAST  # buckets of a small matrix: no fewer than this many, or than it has inputs (fold)
    stride: int = 1  # keep every s-th coordinate of all parameters laid end to end (flat, as published)
    offset: int = 0  # first coordinate kept (flat)
    seed: int = 0
    scope: str = ""  # regular expression that a covered parameter's name must contain a match of
    hashed: int = 0  # numbers kept a gradient after hashing the row once more; 0: not hashed

    @classmethod
    def of(cls, config: CalibrationConfig) -> SketchSpec:
        """The spec that a configuration asks for; settings that its kind does not use are left at rest."""
        common = cls(kind=config.sketch, scope=config.parameters or "", hashed=config.hashed or 0)
        if config.sketch == "fold":
            return common.model_copy(update={"fold": config.fold, "seed": config.seed})
        if config.sketch == "flat":
            return common.model_copy(update={"stride": config.stride, "offset": config.offset})
        return common

    def __str__(self) -> str:
        if self.kind == "fold":
            text = f"fold {self.fold}, seed {self.seed}"
        else:
            text = f"flat stride {self.stride}, offset {self.offset}" if self.kind == "flat" else "full"
        text += f", parameters matching {self.scope}" if self.scope else ""
        return f"{text}, hashed to {self.hashed:,}" if self.hashed else text


class TensorSketch(Record):
    """One parameter's part of the row."""

    name: str
    shape: list[int]
    axis: int  # the input dimension, which the fold sums over (Conv1D: 0)
    how: Literal["whole", "fold", "stride"]
    buckets: int  # of the fold; 0 for the others
    first: int  # first local coordinate kept (stride); 0 for the others
    start: int  # where the kept numbers begin in the row
    size: int  # how many are kept

    @property
    def stop(self) -> int:
        return self.start + self.size

    @property
    def inputs(self) -> int:
        """Length of the folded dimension. A convolution's kernel (o × i × h × w) folds over all of i·h·w."""
        return math.prod(self.shape[1:]) if len(self.shape) > 3 else self.shape[self.axis]


class SketchLayout(Record):
    """The rule applied to a model: every covered parameter in model order, and the row they make together.

    A parameter whose gradient is absent contributes zeros: nothing ever shifts another parameter's place.
    """

    spec: SketchSpec
    tensors: list[TensorSketch]

    @classmethod
    def plan(cls, spec: SketchSpec, parameters: list[tuple[str, list[int], int]]) -> SketchLayout:
        """Lays out `parameters`: (name, shape, input axis) in model order.

        Raises:
            InputError: a stride (flat) that steps over whole parameters.
        """
        if spec.kind == "flat" and parameters:
            # A single number that is left out, such as a temperature, is no loss.
            numbers, name = min((math.prod(shape), name) for name, shape, _ in parameters if math.prod(shape) != 1)
            if spec.stride > numbers:
                message = f"{spec.stride} steps over whole parameters: `{name}` has {numbers:,} numbers"
                raise InputError(message, field="calibration.stride")
        tensors: list[TensorSketch] = []
        coordinate = row = 0  # in the full gradient; in the sketch
        for name, shape, axis in parameters:
            tensor = _plan_tensor(spec, name, shape, axis, coordinate, row)
            tensors.append(tensor)
            coordinate += math.prod(shape)
            row = tensor.stop
        return cls(spec=spec, tensors=tensors)

    @property
    def width(self) -> int:
        """Length of a row before it is hashed."""
        return self.tensors[-1].stop if self.tensors else 0

    @property
    def numbers(self) -> int:
        """Float32 numbers kept a gradient."""
        return self.spec.hashed or self.width

    @property
    def parameters(self) -> int:
        """Scalar parameters covered."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @cached_property
    def by_name(self) -> dict[str, TensorSketch]:
        return {tensor.name: tensor for tensor in self.tensors}

    def hash(self, rows: NDArray[np.float32], numbers: int) -> NDArray[np.float32]:
        """Count sketch of (k × width) rows into (k × numbers): every number goes, with a sign, into a random place."""
        out = np.zeros((len(rows), numbers))
        for tensor in self.tensors:
            signs, places = _signs_and_places(self.spec.seed, tensor.name, tensor.size, numbers)
            for row, target in zip(rows, out, strict=True):
                target += np.bincount(places, signs * row[tensor.start : tensor.stop], minlength=numbers)
        return out.astype(np.float32)


def _plan_tensor(spec: SketchSpec, name: str, shape: list[int], axis: int, coordinate: int, row: int) -> TensorSketch:
    count = math.prod(shape)
    if spec.kind == "flat":
        # Local j is kept when coordinate + j = offset + a multiple of the stride.
        first = spec.offset - coordinate if coordinate <= spec.offset else (spec.offset - coordinate) % spec.stride
        size = max(0, -(-(count - first) // spec.stride))
        return TensorSketch(
            name=name, shape=shape, axis=axis, how="stride", buckets=0, first=first, start=row, size=size
        )
    plain = TensorSketch(name=name, shape=shape, axis=axis, how="whole", buckets=0, first=0, start=row, size=count)
    # 1-D parameters are kept whole: norms and biases held 30% of a gradient's energy in 0.03% of its coordinates.
    if spec.kind == "full" or len(shape) < 2 or count == 0:
        return plain
    buckets = min(plain.inputs, max(-(-plain.inputs // spec.fold), spec.least))
    size = count // plain.inputs * buckets
    return plain.model_copy(update={"how": "fold", "buckets": buckets, "size": size})


def signs_and_buckets(seed: int, name: str, inputs: int, buckets: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Sign (±1) and bucket of each input of parameter `name`, both of shape (inputs,).

    Signs are independent, so inner products are unbiased. Buckets are a random permutation cut into equal runs:
    fuller use of the buckets than independent draws, and no dependence on how neighbouring inputs correlate.
    """
    raw = _raw("fold", seed, name, 2 * inputs)
    signs = np.where(raw[:inputs] >> np.uint64(63), 1, -1).astype(np.int8)
    rank = np.empty(inputs, dtype=np.int64)
    rank[np.argsort(raw[inputs:], kind="stable")] = np.arange(inputs)
    return signs, rank * buckets // inputs


def _signs_and_places(seed: int, name: str, size: int, places: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Sign (±1) and place of each of a parameter's numbers in a hashed row, both (size,) and independent."""
    raw = _raw("hash", seed, name, size)
    signs = np.where(raw >> np.uint64(63), 1, -1).astype(np.int8)
    return signs, (raw & np.uint64(2**62 - 1)).astype(np.int64) % places


def _raw(use: str, seed: int, name: str, count: int) -> NDArray[np.uint64]:
    """(count,) random 64-bit words of their own for each use, seed and parameter."""
    digest = hashlib.sha256(f"merit {use} {seed} {name}".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))
    return np.asarray(stream.random_raw(count), dtype=np.uint64)
