"""What a merge rule is: one object in one file, which everything else asks instead of knowing its name.

Every rule gives each branch a weight. One that does no more is a weighted average, which the merge engine streams from
disk to disk. A rule that weighs directions, too, gives one of two things besides:

* `tensor`: a function of one tensor in all branches and in θ0, for rules that need no data: θ = θ0 + f(δ_1 … δ_K).
  Tensors are read and written one at a time, so memory is K + 2 tensors, whatever the model's size;
* `sums`: an object that is shown one branch model after the other, with its training rows, and then solves for the
  step: see `merit.merge.curvature`.

Their result is written as a float32 checkpoint, which the engine takes on as it takes any other: types, rounding,
points of the ray, checks and cards are the same for all rules. So `merit_ext/rules/median.py`, anywhere on the Python
path, is a whole rule:

    \"\"\"`median`: the element-wise median of the branches' steps.\"\"\"

    import torch
    from merit.merge.rule import MergeRule

    def median(of):
        return torch.stack(of.steps).median(0).values

    RULE = MergeRule(label="median merge", how="by the median of every weight's steps", tensor=median)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from merit.base import extensions
from merit.merge.weights import token_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from merit.data.example import Encoded


@dataclass(frozen=True)
class Branches:
    """What is merged.

    Args:
        folders: a checkpoint each.
        tokens: supervised tokens that each was trained on; empty where nobody knows them.
    """

    folders: Sequence[Path]
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class TensorSteps:
    """One tensor in θ0 and in all branches, all float64 and of one shape.

    Args:
        name: of the parameter.
        theta0: its value in θ0.
        steps: δ_k = θ_k − θ0.
        shares: of the branches, by the rule's own weights; their sum is 1.
        ridge: `merge.ridge`, or the configuration's default.
    """

    name: str
    theta0: Tensor
    steps: list[Tensor]
    shares: list[float]
    ridge: float


class BranchSums(Protocol):
    """Sees one branch at a time."""

    def add(self, model: nn.Module, step: Mapping[str, Tensor], weight: float, rows: Sequence[Encoded]) -> None:
        """Adds a branch: the model with its weights, θ_k − θ0, its weight, and examples of its training data."""

    def solve(self, ridge: float) -> dict[str, Tensor]:
        """The merge's step from θ0, float32."""


def _by_tokens(branches: Branches) -> list[float]:
    return token_weights(branches.tokens)


@dataclass(frozen=True)
class MergeRule:
    """A merge rule. Its name is its file's.

    Args:
        label: what its merge is called.
        how: completes "The branches were merged …" on the model card.
        weights: one a branch, relative. Raises InputError where the branches cannot be weighed.
        needs_tokens: the weights are of the tokens that the branches were trained on.
        tensor: the merged step from θ0, float64, of one tensor.
        sums: from θ0's parameters, what sees every branch and its training rows.
    """

    label: str
    how: str
    weights: Callable[[Branches], list[float]] = _by_tokens
    needs_tokens: bool = True
    tensor: Callable[[TensorSteps], Tensor] | None = None
    sums: Callable[[Mapping[str, Tensor]], BranchSums] | None = None

    @property
    def is_average(self) -> bool:
        """Whether the weights say all: the merge needs neither θ0 nor data."""
        return self.tensor is None and self.sums is None


def find_rule(name: str) -> MergeRule:
    """The rule of this name.

    Raises:
        InputError: there is none.
    """
    found: MergeRule = extensions.load("rules", name)
    return found
