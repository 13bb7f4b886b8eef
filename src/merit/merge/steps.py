"""One tensor in θ0 and in all branches, read from disk when a rule asks for it.

So a merge rule holds as much of a tensor as it needs: all branches at once, one of them, or a few rows of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from merit.base.errors import InputError
from merit.merge.codec import Float64s, Scratch
from merit.models.checkpoint import FilePool

if TYPE_CHECKING:
    from torch import Tensor

    from merit.merge.curvature import LayerSketches
    from merit.merge.inputs import Source
    from merit.models.input_sketch import InputSketch

Rows = Callable[[int, int], Float64s]
"""(first, last) → those rows of a merged step from θ0, (last - first, inputs)."""

_READ = 1 << 16  # elements


@dataclass(frozen=True)
class TensorSteps:
    """One tensor of a merge. Steps are δ_k = θ_k − θ0, exact, float64.

    Args:
        name: of the parameter.
        shape: as it is stored.
        shares: of the branches, by the rule's own weights (by default their tokens); their sum is 1.
        ridge: `merge.ridge`, or the rule's default.
        is_linear: it is the weight of a linear layer, (outputs × inputs). A head tied to the embeddings is none.
        transposed: it is stored as (inputs × outputs); `step`, `rows` and `factors` speak of (outputs × inputs).
        short: every input has 16-bit weights.
        sketches: of the branches' inputs, where the rule needs them.
    """

    name: str
    shape: tuple[int, ...]
    shares: tuple[float, ...]
    ridge: float
    is_linear: bool
    transposed: bool
    short: bool
    sources: Sequence[Source]
    base: Source
    files: FilePool
    sketches: Sequence[InputSketch] = ()

    @property
    def theta0(self) -> Tensor:
        """Its value in θ0."""
        return self._tensor(self._read(self.base, 0, self._elements))

    @property
    def steps(self) -> list[Tensor]:
        """δ_1 … δ_K, all in memory."""
        return [self._tensor(self._step(k, 0, self._elements)) for k in range(len(self.sources))]

    @property
    def mean(self) -> Tensor:
        """Σ_k share_k δ_k: what the average by the same weights would be. Two steps are in memory at a time."""
        total = np.zeros(self._elements)
        for k, share in enumerate(self.shares):
            step = self._step(k, 0, self._elements)
            step *= share
            total += step
        return self._tensor(total)

    @property
    def size(self) -> tuple[int, int]:
        """(outputs, inputs) of a matrix."""
        outputs, inputs = self.shape
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def step(self, k: int) -> Float64s:
        """δ_k of a matrix, (outputs × inputs)."""
        whole = self._step(k, 0, self._elements).reshape(self.shape)
        return whole.T if self.transposed else whole

    def rows(self, k: int, first: int, last: int) -> Float64s:
        """Outputs `first` to `last` of δ_k, of a matrix."""
        if self.transposed:
            return self.step(k)[first:last]
        inputs = self.shape[1]
        return self._step(k, first * inputs, last * inputs).reshape(last - first, inputs)

    def factors(self, k: int) -> tuple[Float64s, Float64s] | None:
        """B (outputs × r) and A (r × inputs) with δ_k = B A, where branch k is a LoRA adapter that has them."""
        return self.sources[k].factors(self.files, self.name)

    def input_grams(self) -> LayerSketches | None:
        """What the layer is given on each branch's own data; None where that is not known.

        A matrix that is stored as (inputs × outputs) has none: branches measure plain linear layers.
        """
        from merit.merge.curvature import LayerSketches

        return LayerSketches.of(self.sketches, [source.tensors[self.name].name for source in self.sources])

    @property
    def _elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def _tensor(self, values: Float64s) -> Tensor:
        import torch

        return torch.from_numpy(values).reshape(self.shape)

    def _step(self, k: int, start: int, end: int) -> Float64s:
        """Elements of δ_k.

        Raises:
            InputError: NaN or infinity; names tensor and input.
        """
        out = np.empty(end - start)
        scratch, theta0 = Scratch.make(_READ), np.empty(_READ)
        # Whole rows, since DoRA scales rows.
        row = self.shape[-1] if self.shape else 1
        size = max(1, _READ // row) * row
        if size > _READ:
            scratch, theta0 = Scratch.make(size), np.empty(size)
        for at in range(start, end, size):
            part = out[at - start : min(at + size, end) - start]
            base = theta0[: part.size]
            self.base.read(self.files, self.name, at, base, None, scratch)
            self.sources[k].read(self.files, self.name, at, part, base, scratch)
            part -= base
            if not np.isfinite(part.sum()):
                self._blame(k, part, at)
        return out

    def _blame(self, k: int, part: Float64s, at: int) -> None:
        bad = int(np.flatnonzero(~np.isfinite(part))[0])
        source = self.sources[k]
        value = self._read(source, at + bad, 1)[0]
        if np.isfinite(value):
            source, value = self.base, self._read(self.base, at + bad, 1)[0]
        raise InputError(
            f"{value} at element {at + bad} of {self._elements}: a diverged or damaged input",
            file=source.path,
            field=self.name,
        )

    def _read(self, source: Source, start: int, count: int) -> Float64s:
        out = np.empty(count)
        source.read(self.files, self.name, start, out, None, Scratch.make(count))
        return out
