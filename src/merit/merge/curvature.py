"""Merges that weigh every direction by how much each branch's data care about it.

In a quadratic model with L_k(θ) ≈ ½ (θ − θ_k)ᵀ H_k (θ − θ_k), Σ_k w_k L_k is least at (Σ_k w_k H_k)⁻¹ Σ_k w_k H_k θ_k;
the token average is that only where all H_k are alike. A rule of this kind (`merit.merge.rules.fisher`, `regmean`) has
a stand-in for H_k, measured on branch k's own training data after its training.

Data of a few dozen examples leave most directions undetermined, and there the plain formulas run away. So a rule is a
ridge problem around the token average: λ ‖θ − θ̄‖² is added, λ = `ridge` × the mean curvature of the tensor. At
ridge → ∞ the result is the token average itself.

Branches come one at a time: memory is two models and one set of curvatures, whatever K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from merit.base.errors import InputError, StageError
from merit.data.example import Encoded
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

    def add(self, model: nn.Module, step: Mapping[str, Tensor], weight: float, rows: Sequence[Encoded]) -> None:
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
            accumulate(self._curvature, name, curvature * weight)
            accumulate(self._pulled, name, self._apply(curvature, step[name].double()) * weight)

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

    @abstractmethod
    def _measure(self, model: nn.Module, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """H_k of each parameter that has one."""

    @abstractmethod
    def _apply(self, curvature: Tensor, step: Tensor) -> Tensor:
        """H_k δ_k."""

    @abstractmethod
    def _solve(self, curvature: Tensor, pulled: Tensor, mean: Tensor, ridge: float) -> Tensor:
        """The minimum of the ridge problem."""


def accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Adds `value` to the sum of this name."""
    sums[name] = sums[name] + value if name in sums else value
