"""The arithmetic of a merge, a chunk at a time: θ̄ = Σ n_k θ_k / Σ n_k, in float64, rounded once (method.md, step 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from merit.base.errors import InputError
from merit.merge.codec import Bytes, Scratch, decode, dither, encode, sum_of_squares
from merit.merge.plan import MergePlan, TensorPlan
from merit.models.checkpoint import ITEM_BYTES, FilePool

BYTES_AN_ELEMENT = 56  # of all the buffers below


class Accumulator:
    """Working memory of one thread, and what it has summed up.

    `sums` are Σ squares, float64: of θ_k − θ0 for each input, then of θ_out − θ0 and of the rounding error for each
    output. Those against θ0 stay 0 where there is none.
    """

    def __init__(self, plan: MergePlan, elements: int) -> None:
        self._plan = plan
        self._scratch = Scratch.make(elements)
        self._sum, self._row, self._base, self._spare = np.empty((4, elements))
        self._out: Bytes = np.empty(8 * elements, np.uint8)
        self.sums: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Forgets the sums of squares."""
        self.sums = [0.0] * (len(self._plan.sources) + 2 * len(self._plan.outputs))

    def chunk(self, files: FilePool, tensor: TensorPlan, start: int, count: int) -> Iterator[tuple[int, Bytes]]:
        """Merges elements `start` to `start + count`: yields each output's number and bytes, valid until the next.

        Raises:
            InputError: NaN or infinity in an input, or a value beyond the output type; names tensor and input.
        """
        plan = self._plan
        total, row, base, spare = (part[:count] for part in (self._sum, self._row, self._base, self._spare))
        theta0 = None
        if plan.base is not None:
            plan.base.read(files, tensor.name, start, base, None, self._scratch)
            theta0 = base
        for k, source in enumerate(plan.sources):
            value = row if k else total
            source.read(files, tensor.name, start, value, theta0, self._scratch)
            if theta0 is not None:
                np.subtract(value, theta0, out=spare)
                self.sums[k] += sum_of_squares(spare, spare)
            if tensor.factors[k] != 1:
                value *= tensor.factors[k]
            if k:
                total += row
        # One pass instead of a scan of every input: a NaN or an infinity anywhere survives into the sum.
        if not np.isfinite(total.sum()) or (theta0 is not None and not np.isfinite(theta0.sum())):
            self._blame(files, tensor, start, count)
        for number, output in enumerate(plan.outputs):
            dtype = plan.out_dtype(tensor, output)
            exact = spare
            if output.scale is None or tensor.divisor == 1:
                np.copyto(exact, total)
            else:
                np.divide(total, tensor.divisor, out=exact)
            if theta0 is not None and output.scale not in (None, 1.0):
                exact -= theta0
                exact *= output.scale
                exact += theta0
            yield number, self._round(tensor, start, exact, row, theta0, number, dtype)

    def _round(
        self,
        tensor: TensorPlan,
        start: int,
        exact: np.ndarray,
        written: np.ndarray,
        theta0: np.ndarray | None,
        number: int,
        dtype: str,
    ) -> Bytes:
        out = self._out[: exact.size * ITEM_BYTES[dtype]]
        if self._plan.rounding == "stochastic":
            np.copyto(written, exact)
            dither(written, dtype, self._plan.seed, tensor.name, start)
            encode(written, dtype, out, self._scratch)
        else:
            encode(exact, dtype, out, self._scratch)
        if self._plan.outputs[number].scale is None:
            return out
        at = len(self._plan.sources) + 2 * number
        decode(out, dtype, written, self._scratch)
        np.subtract(written, exact, out=exact)
        error = sum_of_squares(exact, exact)
        if not np.isfinite(error):
            raise InputError(f"a merged value is too large for {dtype}; choose a wider type", field=tensor.name)
        self.sums[at + 1] += error
        if theta0 is not None:
            written -= theta0
            self.sums[at] += sum_of_squares(written, written)
        return out

    def _blame(self, files: FilePool, tensor: TensorPlan, start: int, count: int) -> None:
        row, base = self._row[:count], self._base[:count]
        theta0 = None if self._plan.base is None else base
        suspects = [*self._plan.sources] if self._plan.base is None else [self._plan.base, *self._plan.sources]
        for source in suspects:
            source.read(files, tensor.name, start, row, theta0, self._scratch)
            bad = np.flatnonzero(~np.isfinite(row))
            if bad.size:
                where = start + int(bad[0])
                raise InputError(
                    f"{row[bad[0]]} at element {where} of {tensor.elements}: a diverged or damaged input",
                    file=source.path,
                    field=tensor.name,
                )
        raise InputError("the weighted sum overflows float64; use smaller weights", field=tensor.name)
