"""Merges that weigh every direction by how much each branch's data care about it.

In a quadratic model with L_k(θ) ≈ ½ (θ − θ_k)ᵀ H_k (θ − θ_k), Σ_k w_k L_k is least at (Σ_k w_k H_k)⁻¹ Σ_k w_k H_k θ_k;
the token average is that only where all H_k are alike. Two stand-ins for H_k, measured on branch k's own training data
after its training:

* **fisher**: the diagonal of the empirical Fisher matrix, mean squared gradients (Matena & Raffel, arXiv 2111.09832);
* **regmean**: for every linear layer the Gram matrix of its inputs, G_k = mean of x xᵀ, which is the exact Hessian of
  Σ_k w_k ‖(W − W_k) x‖² (Jin et al., arXiv 2212.09849). Everything that is no linear layer is averaged by tokens.

Data of a few dozen examples leave most directions undetermined, and there the plain formulas run away. So both are
ridge problems around the token average: λ ‖θ − θ̄‖² is added, λ = `ridge` × the mean curvature of the tensor. At
ridge → ∞ the result is the token average itself.

Branches come one at a time: memory is two models and one set of curvatures, whatever K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from merit.base.errors import InputError, StageError
from merit.compute.nll import TokenRow, length_batches, supervised_nll
from merit.config.merge import CURVATURE_BATCH_TOKENS
from merit.merge.ray import add_step, zeros


class CurvatureMerge(ABC):
    """Sums over branches; `solve` gives the step from θ0. Sums are float64.

    Args:
        names: the parameters to merge, as `model.named_parameters` has them.
    """

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        self._mean = zeros(names)
        self._curvature: dict[str, Tensor] = {}  # Σ w_k H_k
        self._pulled: dict[str, Tensor] = {}  # Σ w_k H_k δ_k
        self._weight = 0.0

    def add(self, model: nn.Module, step: Mapping[str, Tensor], weight: float, rows: Sequence[TokenRow]) -> None:
        """Adds a branch.

        Args:
            model: with the branch's own weights.
            step: θ_k − θ0.
            weight: w_k, relative (its tokens).
            rows: examples of its training data.

        Raises:
            InputError: no rows.
            StageError: a curvature is not finite.
        """
        if not rows:
            raise InputError("a branch's curvature needs training examples of it")
        self._weight += weight
        add_step(self._mean, step, weight)
        for name, curvature in self._measure(model, rows).items():
            if not bool(curvature.isfinite().all()):
                raise StageError(f"the curvature of {name} is not finite: a diverged branch")
            self._accumulate(self._curvature, name, curvature * weight)
            self._accumulate(self._pulled, name, self._apply(curvature, step[name].double()) * weight)

    def solve(self, ridge: float) -> dict[str, Tensor]:
        """The merge's step from θ0, float32."""
        found = {}
        for name, total in self._mean.items():
            mean = total / self._weight
            if name in self._curvature:
                curvature, pulled = self._curvature[name] / self._weight, self._pulled[name] / self._weight
                mean = self._solve(curvature, pulled, mean, ridge)
            found[name] = mean.float()
        return found

    @staticmethod
    def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    @abstractmethod
    def _measure(self, model: nn.Module, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """H_k of each parameter that has one."""

    @abstractmethod
    def _apply(self, curvature: Tensor, step: Tensor) -> Tensor:
        """H_k δ_k."""

    @abstractmethod
    def _solve(self, curvature: Tensor, pulled: Tensor, mean: Tensor, ridge: float) -> Tensor:
        """The minimum of the ridge problem."""


class FisherMerge(CurvatureMerge):
    """Diagonal Fisher weights."""

    def _measure(self, model: nn.Module, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
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


class RegMeanMerge(CurvatureMerge):
    """Input Grams of linear layers."""

    def _measure(self, model: nn.Module, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        with _inputs(_linears(model, self._mean), found, counts), torch.no_grad():
            for batch in length_batches([len(ids) for ids, _ in rows], CURVATURE_BATCH_TOKENS):
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


RULES: dict[str, type[CurvatureMerge]] = {"fisher": FisherMerge, "regmean": RegMeanMerge}


def _linears(model: nn.Module, names: Mapping[str, Any]) -> dict[str, nn.Linear]:
    """Parameter name → the layer it is the weight of. A head that is tied to the embeddings is no layer of its own:
    its rows are used as embeddings, too."""
    embeddings = {id(item.weight) for item in model.modules() if isinstance(item, nn.Embedding)}
    found = {}
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, nn.Linear) and name in names and id(module.weight) not in embeddings:
            found[name] = module
    return found


@contextmanager
def _inputs(layers: Mapping[str, nn.Linear], sums: dict[str, Tensor], counts: dict[str, int]) -> Iterator[None]:
    """Adds x xᵀ of every input that the layers see to `sums`, float64."""

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            CurvatureMerge._accumulate(sums, name, x.T @ x)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_length(rows: Sequence[TokenRow], batch: Sequence[int]) -> Iterator[list[TokenRow]]:
    lengths = {len(rows[index][0]) for index in batch}
    for length in sorted(lengths):
        yield [rows[index] for index in batch if len(rows[index][0]) == length]
