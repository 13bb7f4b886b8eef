"""Carries out a rule that merges tensors otherwise than by averaging them: which it treats, and their merged steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from merit.base.errors import InputError, StageError, first_line
from merit.merge.codec import Float64s, Scratch
from merit.merge.inputs import OpenedInputs, Source
from merit.merge.rule import MergeRule
from merit.merge.steps import TensorSteps
from merit.merge.weights import check_weights, normalised
from merit.models.checkpoint import WHOLE, FilePool, TensorInfo
from merit.models.linear import linear_weights
from merit.models.source import weights_fingerprint

if TYPE_CHECKING:
    from merit.models.input_sketch import InputSketch


Merged = Callable[[int, int], Float64s]
"""(start, count) → those elements of a merged tensor's step from θ0, flat."""


@dataclass(frozen=True)
class Solver:
    """A rule with its settings.

    Args:
        shares: of the inputs; their sum is 1.
        layers: linear layers' weights → whether they are stored as (inputs × outputs).
        short: every input has 16-bit weights.
        sketches: of the branches' inputs, where the rule needs them.
        start: what the rule's steps are taken from: θ0, or the merge that the branches went on from.
        device: of torch, which solves linear layers by `rule.on_device`; None: `rule.layer` does.
    """

    rule: MergeRule
    shares: tuple[float, ...]
    ridge: float
    layers: Mapping[str, bool]
    short: bool
    start: Source
    sketches: tuple[InputSketch, ...] = ()
    device: str | None = None

    def treats(self, info: TensorInfo) -> bool:
        """Whether the rule merges this tensor; all others are averaged."""
        return info.dtype not in WHOLE and (self.rule.tensor is not None or info.name in self.layers)

    def solve(
        self, name: str, shape: tuple[int, ...], sources: Sequence[Source], base: Source, files: FilePool
    ) -> Merged:
        """The merged step of one tensor from `base`.

        Raises:
            InputError: NaN or infinity in an input.
            StageError: the rule gives another shape, or what is not finite.
        """
        linear = name in self.layers
        turned = self.rule.layer is not None and self.layers.get(name, False)
        start = self.start
        of = TensorSteps(
            *(name, shape, self.shares, self.ridge, linear, turned, self.short, sources, start, files, self.sketches)
        )
        merged = self._step(of)
        if start is base:
            return merged

        def from_base(begin: int, count: int) -> Float64s:
            values = np.empty((2, count))
            for source, out in zip((start, base), values, strict=True):
                source.read(files, name, begin, out, None, Scratch.make(count))
            return cast(Float64s, merged(begin, count) + (values[0] - values[1]))

        return from_base

    def _step(self, of: TensorSteps) -> Merged:
        if self.rule.layer is not None and of.is_linear:
            on_device = self.rule.on_device if self.device is not None else None
            rows = self.rule.layer(of) if on_device is None else on_device(of, str(self.device))
            if of.transposed:
                return self._flat(of, rows(0, of.size[0]).T)
            inputs = of.size[1]

            def part(start: int, count: int) -> Float64s:
                first, last = start // inputs, -(-(start + count) // inputs)
                at = start - first * inputs
                return self._finite(of, rows(first, last).reshape(-1)[at : at + count])

            return part
        if self.rule.tensor is None:
            raise StageError(f"{self.rule.label}: this rule merges no tensors")
        return self._flat(of, self.rule.tensor(of).double().numpy())

    def _flat(self, of: TensorSteps, step: Float64s) -> Merged:
        if step.shape != of.shape:
            raise StageError(f"{self.rule.label}: {of.name} has shape {list(of.shape)}, its step {list(step.shape)}")
        flat = self._finite(of, np.ascontiguousarray(step).reshape(-1))
        return lambda start, count: flat[start : start + count]

    def _finite(self, of: TensorSteps, values: Float64s) -> Float64s:
        if not np.isfinite(values.sum()):
            raise StageError(f"{self.rule.label}: {of.name} is not finite; a branch may have diverged")
        return values


def make_solver(
    rule: MergeRule,
    weights: Sequence[float],
    ridge: float,
    opened: OpenedInputs,
    start: Source | None,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Solver:
    """A solver for the inputs of one merge, as steps from `start`.

    Raises:
        InputError: no base; a ridge that is no positive number; one input, or one that equals the base; no linear layer
            for a rule by layers; a branch without the sketch that the rule needs; a device that cannot solve.
    """
    if opened.base is None or start is None:
        raise InputError(f"the {rule.label} is a step from θ0: name it with --base", field="base")
    if not 0 < ridge < math.inf:
        raise InputError(f"{ridge:g} is not a positive number", field="ridge")
    if len(opened.sources) < 2:
        raise InputError("one branch: there is nothing to merge it with", file=opened.sources[0].path)
    if device is not None:
        _check_device(rule, device)
    own = weights_fingerprint(start.path)
    for source in opened.sources:
        if weights_fingerprint(source.path) == own:
            raise InputError("has the weights that it started from: nothing was trained", file=source.path)
    floats = [info for info in opened.tensors if info.dtype not in WHOLE]
    layers = linear_weights(opened.base.path, [i.name for i in floats], trust_remote_code=trust_remote_code)
    if rule.layer is not None and not layers:
        raise InputError(f"the {rule.label} is of linear layers, and this model has none", file=opened.base.path)
    types = {source.tensors[info.name].dtype for info in floats for source in (*opened.sources, opened.base)}
    shares = tuple(normalised(check_weights(weights, len(opened.sources))))
    sketches: tuple[InputSketch, ...] = ()
    if rule.needs_inputs:
        from merit.merge.curvature import open_sketches

        sketches = tuple(open_sketches([source.path for source in opened.sources]))
        pairs = [*zip(opened.sources, sketches, strict=True)]
        layers = {
            n: turned for n, turned in layers.items() if any(s.tensors[n].name in k.facts.layers for s, k in pairs)
        }
    return Solver(rule, shares, ridge, layers, types <= {"BF16", "F16"}, start, sketches, device)


def _check_device(rule: MergeRule, device: str) -> None:
    import torch

    if rule.on_device is None:
        raise InputError(f"the {rule.label} is not solved on a device", field="device")
    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()
    except (RuntimeError, TypeError, AssertionError) as error:  # unknown, not there, or without float64
        raise InputError(f"{device!r} cannot solve: {first_line(error)}", field="device") from None
