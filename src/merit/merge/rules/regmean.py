"""`regmean`: by what every branch's linear layers are given on its own data (RegMean).

G_k = mean of x xᵀ of a layer's inputs is the exact Hessian of Σ_k w_k ‖(W − W_k) x‖² (Jin et al., arXiv 2212.09849).
Each branch's job measures it after training and leaves a sketch beside its weights (`merit.models.input_sketch`): the
merge reads these, and no data. Everything that is no linear layer is averaged by tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from merit.merge.rule import MergeRule

if TYPE_CHECKING:
    from torch import Tensor

    from merit.merge.codec import Float64s
    from merit.merge.steps import Rows, TensorSteps


class _Steps(Sequence["Tensor"]):
    """δ_1 … δ_K, each read when it is asked for."""

    def __init__(self, of: TensorSteps) -> None:
        self._of = of

    def __len__(self) -> int:
        return len(self._of.shares)

    def __getitem__(self, index: Any) -> Any:
        import torch

        return torch.from_numpy(self._of.step(index))


def solve(of: TensorSteps, device: str | None = None) -> Rows:
    """The merged step of one linear layer; the average where no branch's data reach it."""
    from merit.merge.curvature import regmean_step

    grams = of.input_grams()
    if grams is None:
        step = cast("Float64s", of.mean.numpy())
    else:
        step = cast("Float64s", regmean_step(_Steps(of), grams, of.shares, of.ridge, device).cpu().numpy())
    return lambda first, last: step[first:last]


RULE = MergeRule(
    label="RegMean merge",
    how="with every linear layer solved for the inputs that it sees on the branches' own training data",
    layer=solve,
    on_device=solve,
    ridge=0.01,
    needs_inputs=True,
)
