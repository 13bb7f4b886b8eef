"""Merges by the curvature that travels with the branches: the solve of one layer, and the branches' sketches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merit.base.errors import InputError, StageError
from merit.models.input_sketch import InputSketch, sketch_file

Sketch = tuple[Tensor, Tensor]  # S (r, d) and ρ (d,), float64: G ≈ SᵀS + diag(ρ)


def open_sketches(folders: Sequence[Path], branches: Sequence[str] = ()) -> list[InputSketch]:
    """The sketch of every branch.

    Args:
        folders: the branches' checkpoints.
        branches: the fingerprints of their specs, where these are known.

    Raises:
        InputError: a branch has none, or it is damaged, or belongs to another branch or other weights.
    """
    found = []
    for number, folder in enumerate(folders):
        sketch = InputSketch.open(folder, branch=branches[number] if branches else None)
        if sketch is None:
            raise InputError(
                "this branch has no sketch of its inputs, by which this rule weighs; `merit run` measures one in the "
                "run that holds the branch and its data, if `merge.weights: regmean` is set there",
                file=sketch_file(folder),
            )
        found.append(sketch)
    return found


class LayerSketches(Sequence[Sketch]):
    """The sketches of one layer in all branches, each read when it is asked for.

    A branch whose data do not reach the layer has G = 0 there: it is indifferent.
    """

    def __init__(self, sketches: Sequence[InputSketch], names: Sequence[str], width: int) -> None:
        self._sketches, self._names, self._width = sketches, names, width

    @classmethod
    def of(cls, sketches: Sequence[InputSketch], names: Sequence[str]) -> LayerSketches | None:
        """Those of the layer whose weight is `names[k]` in checkpoint k; None if no branch's data reach it."""
        widths = [sketch.width(name) for sketch, name in zip(sketches, names, strict=True)]
        known = next((width for width in widths if width is not None), None)
        return None if known is None else cls(sketches, names, known)

    def __len__(self) -> int:
        return len(self._sketches)

    def __getitem__(self, index: Any) -> Any:
        found = self._sketches[index].of(self._names[index])
        if found is None:
            zero = torch.zeros(self._width, dtype=torch.float64)
            return zero.new_zeros(0, self._width), zero
        return found


def regmean_step(
    steps: Sequence[Tensor],
    grams: Sequence[Sketch],
    shares: Sequence[float],
    ridge: float,
    device: str | None = None,
) -> Tensor:
    """The RegMean step of one linear layer from θ0, (m, d) float64.

    It solves (Σ_k w_k G_k + μ I) Δᵀ = (Σ_k w_k δ_k G_k + μ Δ̄)ᵀ, G_k ≈ S_kᵀS_k + diag(ρ_k), Δ̄ = Σ_k w_k δ_k, with μ =
    `ridge` × the mean diagonal of Σ_k w_k G_k. Where that is 0, because no data reach the layer, it is Δ̄.

    Memory: one d × d matrix, which its factor replaces, one m × d sum and the result, and of the branches one step and
    one sketch at a time. `grams` is gone through twice, so both may read theirs when they are asked.

    Args:
        steps: δ_k = θ_k − θ0, (m, d) each, of any floating type.
        grams: (S_k, ρ_k), float64.
        shares: w_k; their sum is 1.
        ridge: > 0.
        device: where it is solved, and the result is; None: where the inputs are.

    Raises:
        StageError: a step or a sketch is not finite.
    """
    system = _sum(grams, shares, device)
    level = ridge * float(system.diagonal().mean())
    system.diagonal().add_(level)
    total = None
    for number, share in enumerate(shares):
        rows, rest, step = (part.to(device=device) for part in (*grams[number], steps[number].double()))
        if total is None:
            total = torch.zeros_like(step)
        total.addmm_(step @ rows.T, rows, alpha=share)
        total.addcmul_(step, rest + level if level else torch.ones_like(rest), value=share)
    if total is None:
        raise StageError("a merge of no branches")
    if level:
        info = torch.empty((), dtype=torch.int32, device=system.device)
        torch.linalg.cholesky_ex(system, out=(system, info))
        if int(info):  # never of a finite sum: the ridge keeps it positive
            raise StageError("the curvature of a layer is not finite: a branch has diverged")
        total = torch.cholesky_solve(total.T, system).T
    if not bool(total.isfinite().all()):
        raise StageError("the merged step of a layer is not finite: a branch has diverged")
    return total


def _sum(grams: Sequence[Sketch], shares: Sequence[float], device: str | None) -> Tensor:
    """Σ_k w_k G_k, (d, d)."""
    system = None
    for number, share in enumerate(shares):
        rows, rest = (part.to(device=device) for part in grams[number])
        if system is None:
            system = torch.zeros(len(rest), len(rest), dtype=torch.float64, device=rest.device)
        system.addmm_(rows.T, rows, alpha=share)
        system.diagonal().add_(rest, alpha=share)
    if system is None:
        raise StageError("a merge of no branches")
    return system
