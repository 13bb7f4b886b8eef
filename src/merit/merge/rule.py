"""What a merge rule is: one object in one file, which everything else asks instead of knowing its name.

Every rule gives each branch a weight. One that does no more is a weighted average, which the merge engine streams from
disk to disk. A rule that weighs directions, too, gives one of two things besides:

* `tensor`: a function of one tensor in all branches and in θ0, for rules that need no data: θ = θ0 + f(δ_1 … δ_K). It
  can treat the weights of linear layers apart, and fall back to the average (see `TensorSteps`);
* `layer`: the same for linear layers' weights alone, which reads and gives as little at a time as it wants; all else is
  averaged (`merit.merge.rules.actmat`), or left to `tensor`, if the rule gives both;
* `sums`: an object that is shown one branch model after the other, with its training rows, and then solves for the
  step: see `CurvatureMerge`.

Types, rounding, points of the ray, resuming, `--verify` and cards are the engine's, and the same for all rules. So
`merit_ext/rules/median.py`, anywhere on the Python path, is a whole rule:

    \"\"\"`median`: the element-wise median of the branches' steps.\"\"\"

    import torch
    from merit.merge.rule import MergeRule

    def median(of):
        return torch.stack(of.steps).median(0).values

    RULE = MergeRule(label="median merge", how="by the median of every weight's steps", tensor=median)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from merit.base import extensions
from merit.base.errors import InputError, StageError
from merit.merge.weights import token_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from merit.data.example import Encoded
    from merit.merge.steps import Rows, TensorSteps


@dataclass(frozen=True)
class Branches:
    """What is merged.

    Args:
        folders: a checkpoint each.
        tokens: supervised tokens that each was trained on; empty where nobody knows them.
    """

    folders: Sequence[Path]
    tokens: Sequence[int] = ()


class BranchSums(Protocol):
    """Sees one branch at a time."""

    def add(self, model: nn.Module, step: Mapping[str, Tensor], weight: float, rows: Sequence[Encoded]) -> None:
        """Adds a branch: the model with its weights, θ_k − θ0, its weight, and examples of its training data."""

    def solve(self, ridge: float) -> dict[str, Tensor]:
        """The merge's step from θ0, float32."""


def by_tokens(branches: Branches) -> list[float]:
    """The published weights."""
    return token_weights(branches.tokens)


@dataclass(frozen=True)
class MergeRule:
    """A merge rule. Its name is its file's.

    Args:
        label: what its merge is called.
        how: completes "The branches were merged …" on the model card.
        weights: one a branch, relative. Raises InputError where the branches cannot be weighed.
        needs_tokens: the weights follow from the tokens that the branches were trained on.
        tensor: gives the merged step of one tensor from θ0, float64; beside `layer`, of all that is no linear layer.
        layer: gives rows of the merged step of one linear layer's weight, (outputs × inputs), float64.
        on_device: the same as `layer`, by a device of torch, such as `cuda`; other sums, so other last bits.
        on_one_core: `layer` may be called by several threads at once, and starts none but those of BLAS.
        ridge: `merge.ridge`, where nobody sets it.
        needs_inputs: every branch leaves a sketch of what its layers are given on its own data, for `layer` to read.
        sums: makes, of θ0's parameters, the object that sees every branch and its training rows.
    """

    label: str
    how: str
    weights: Callable[[Branches], list[float]] = by_tokens
    needs_tokens: bool = True
    tensor: Callable[[TensorSteps], Tensor] | None = None
    layer: Callable[[TensorSteps], Rows] | None = None
    on_device: Callable[[TensorSteps, str], Rows] | None = None
    on_one_core: bool = False
    ridge: float = 0.1
    needs_inputs: bool = False
    sums: Callable[[Mapping[str, Tensor]], BranchSums] | None = None

    @property
    def is_average(self) -> bool:
        """Whether the merge is the weighted average of the branches: it needs neither θ0 nor data."""
        return not self.is_solved and self.sums is None

    @property
    def of_weights_alone(self) -> bool:
        """Whether it reads checkpoints and nothing that was measured of the branches."""
        return self.sums is None and not self.needs_inputs

    @property
    def is_solved(self) -> bool:
        """Whether the merge engine carries it out tensor by tensor, from the branches and θ0 alone."""
        return self.tensor is not None or self.layer is not None


def find_rule(name: str) -> MergeRule:
    """The rule of this name.

    Raises:
        InputError: there is none.
    """
    found: MergeRule = extensions.load("rules", name)
    return found


class CurvatureMerge(ABC):
    """Weighs every direction by how much each branch's data care about it. `solve` gives the step from θ0.

    In a quadratic model with L_k(θ) ≈ ½ (θ − θ_k)ᵀ H_k (θ − θ_k), Σ_k w_k L_k is least at
    (Σ_k w_k H_k)⁻¹ Σ_k w_k H_k θ_k; the token average is that only where all H_k are alike. A rule of this kind
    (`merit.merge.rules.fisher`) has a stand-in for H_k, measured on branch k's own training data.

    Data of a few dozen examples leave most directions undetermined, and there the plain formulas run away. So a rule is
    a ridge problem around the token average: λ ‖θ − θ̄‖² is added, λ = `ridge` × the mean curvature of the tensor. At
    ridge → ∞ the result is the token average itself.

    Branches come one at a time: memory is two models and one set of curvatures, whatever K. Sums are float64.

    Args:
        names: the parameters to merge, as `model.named_parameters` has them.
    """

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        from merit.merge.ray import zeros

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
        from merit.merge.ray import add_step

        if not rows:
            raise InputError("to measure a branch's curvature, merit needs some of its training examples")
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
