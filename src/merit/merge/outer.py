"""The outer step of a round (DiLoCo, arXiv 2311.08105): the branches' merge is the gradient of an outer optimizer, SGD
with Nesterov momentum in PyTorch's form.

    g = θ_start − θ_merge        b ← μ b + g        θ ← θ_start − rate · (g + μ b)

Rate 1 without momentum is the merge itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merit.base.errors import InputError
from merit.config.sections import OuterConfig
from merit.merge.codec import Float64s, Scratch
from merit.merge.inputs import CheckpointSource, Source
from merit.models.checkpoint import SINGLE, FilePool, TensorInfo, read_header


@dataclass(frozen=True)
class Outer:
    """How a merge takes its outer step.

    Args:
        before: the folder of the momentum that the round before left; None: there is none yet.
        keep: the folder for this round's momentum; None: no round comes after it.
    """

    settings: OuterConfig
    before: Path | None = None
    keep: Path | None = None


@dataclass(frozen=True)
class OuterStep:
    """The outer step of one merge, with what it reads.

    Args:
        start: what the branches were trained from.
        before: the momentum b of the round before.
    """

    rate: float
    momentum: float
    start: Source
    before: Source | None

    def apply(
        self, files: FilePool, name: str, at: int, values: tuple[Float64s, Float64s, Float64s], scratch: Scratch
    ) -> None:
        """Moves some elements of the merge, the first of `values` (n,), to where the outer step ends, in place. The
        second is overwritten; the third becomes the momentum.

        Args:
            name: the tensor.
            at: its first element that is meant.
        """
        point, spare, momentum = values
        self.start.read(files, name, at, spare, None, scratch)
        spare -= point
        if self.before is None:
            np.copyto(momentum, spare)
        else:
            self.before.read(files, name, at, momentum, None, scratch)
            momentum *= self.momentum
            momentum += spare
        # θ_start − rate · (g + μ b) = θ_merge + (1 − rate) · g − rate · μ · b: nothing cancels at rate 1.
        spare *= 1 - self.rate
        point += spare
        np.multiply(momentum, self.rate * self.momentum, out=spare)
        point -= spare


def open_outer(outer: Outer, start: Source | None, tensors: Mapping[str, TensorInfo]) -> OuterStep:
    """The outer step of a merge whose output has these `tensors`.

    Raises:
        InputError: no θ0; or the momentum is of another model, or gone.
    """
    if start is None:
        raise InputError("an outer step starts from θ0: name it as base", field="base")
    before = None if outer.before is None else _momentum(outer.before, tensors)
    return OuterStep(outer.settings.rate, outer.settings.momentum, start, before)


def _momentum(folder: Path, tensors: Mapping[str, TensorInfo]) -> Source:
    file = folder / SINGLE
    found = {info.name: info for info in read_header(file)}
    for name, info in tensors.items():
        if name not in found or found[name].shape != info.shape:
            raise InputError("not the momentum of this model; run again with `--from rounds`", file=file, field=name)
    return CheckpointSource(folder, found)
