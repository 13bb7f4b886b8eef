"""`fisher`: by the diagonal Fisher matrix, measured on the branches' data after their training.

Its entries are mean squared gradients (Matena & Raffel, arXiv 2111.09832).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from merit.compute.losses import supervised_nll
from merit.data.example import Encoded
from merit.merge.ray import zeros
from merit.merge.rule import CurvatureMerge, MergeRule


class FisherMerge(CurvatureMerge):
    """Diagonal Fisher weights."""

    def _measure(self, model: nn.Module, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        own = {name: value for name, value in model.named_parameters() if name in self._mean}
        found = zeros(own)
        tokens = 0
        with torch.enable_grad():
            for row in rows:
                result = supervised_nll(model, [row])
                grads = torch.autograd.grad(result.nll.sum(), list(own.values()), allow_unused=True)
                tokens += len(result.nll)
                for name, grad in zip(own, grads, strict=True):
                    if grad is not None:
                        found[name] += grad.double().square()
        return {name: value / max(1, tokens) for name, value in found.items()}

    def _apply(self, curvature: Tensor, step: Tensor) -> Tensor:
        return curvature * step

    def _solve(self, curvature: Tensor, pulled: Tensor, mean: Tensor, ridge: float) -> Tensor:
        level = float(curvature.mean()) * ridge
        return mean if level == 0 else (pulled + level * mean) / (curvature + level)


RULE = MergeRule(
    label="Fisher merge",
    how="with every weight counting by its mean squared gradient on the branch's own training data",
    sums=FisherMerge,
)
