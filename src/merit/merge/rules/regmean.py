"""`regmean`: by input Grams of linear layers (RegMean), measured on the branches' data after their training.

G_k = mean of x xᵀ of a layer's inputs is the exact Hessian of Σ_k w_k ‖(W − W_k) x‖² (Jin et al., arXiv 2212.09849).
Everything that is no linear layer is averaged by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from merit.compute.batches import length_batches
from merit.compute.losses import supervised_nll
from merit.config.sections import CURVATURE_BATCH_TOKENS
from merit.data.example import Encoded
from merit.merge.rule import CurvatureMerge, MergeRule, accumulate
from merit.models.linear import linear_layers


class RegMeanMerge(CurvatureMerge):
    """Input Grams of linear layers."""

    def _measure(self, model: nn.Module, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        layers = {name: layer for name, layer in linear_layers(model).items() if name in self._mean}
        with _inputs(layers, found, counts), torch.no_grad():
            for batch in length_batches([len(row.input_ids) for row in rows], CURVATURE_BATCH_TOKENS):
                # A batch of one length has no padding, whose inputs would count as data.
                for same in _by_length(rows, batch):
                    supervised_nll(model, same)
        return {name: value / max(1, counts[name]) for name, value in found.items()}

    def _apply(self, curvature: Tensor, step: Tensor) -> Tensor:
        return step @ curvature

    def _solve(self, curvature: Tensor, pulled: Tensor, mean: Tensor, ridge: float) -> Tensor:
        level = float(curvature.diagonal().mean()) * ridge
        if level == 0:
            return mean
        system = curvature + level * torch.eye(len(curvature), dtype=curvature.dtype, device=curvature.device)
        solved: Tensor = torch.linalg.solve(system, (pulled + level * mean).T).T
        return solved


@contextmanager
def _inputs(layers: Mapping[str, nn.Linear], sums: dict[str, Tensor], counts: dict[str, int]) -> Iterator[None]:
    """Adds x xᵀ of every input that the layers see to `sums`, float64."""

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            accumulate(sums, name, x.T @ x)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_length(rows: Sequence[Encoded], batch: Sequence[int]) -> Iterator[list[Encoded]]:
    lengths = {len(rows[index].input_ids) for index in batch}
    for length in sorted(lengths):
        yield [rows[index] for index in batch if len(rows[index].input_ids) == length]


RULE = MergeRule(
    label="RegMean merge",
    how="with every linear layer solved for the inputs that it sees on the branches' own training data",
    sums=RegMeanMerge,
    ridge=0.01,
)
