"""Layers whose backward pass keeps the fold of the weight's gradient, and never forms the gradient itself.

For Y = X Wᵀ the gradient is dYᵀX (outputs × inputs). Its fold is dYᵀX S = dYᵀ(X S): X S is made in the forward pass
(tokens × buckets, a hundredth of X, and all of X that is kept), and one thin product in the backward pass adds the fold
into a float32 accumulator, the *sink*. So a third of a training step's arithmetic is gone, and most of the activations
that it stores.

The weight is an input of each function only so that autograd calls its backward even where the layer's own input needs
no gradient; it gets none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

from merit.gradients.sketch import SketchLayout, TensorSketch, signs_and_buckets


class FoldedLinear(Function):
    """y = x Wᵀ + b, or x W + b where `transposed` (Conv1D, transposed experts).

    Args of `apply`:
        x: (…, inputs).
        parameter: the covered parameter (for autograd only).
        weight: its value in x's dtype, (outputs × inputs), or (inputs × outputs) where `transposed`.
        bias: (outputs,) or None; gets its gradient the usual way.
        matrix: S, (inputs × buckets), in x's dtype.
        sink: (outputs × buckets) float32; dYᵀ(X S) is added to it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parameter: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        matrix: Tensor,
        sink: Tensor,
        transposed: bool,
    ) -> Tensor:
        folded = x.reshape(-1, x.shape[-1]) @ matrix
        ctx.save_for_backward(weight, folded)
        ctx.sink, ctx.transposed, ctx.bias_dtype = sink, transposed, None if bias is None else bias.dtype
        return F.linear(x, weight.T if transposed else weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        weight, folded = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        ctx.sink.add_(rows.T @ folded)
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = dy @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[3]:
            db = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return dx, None, None, db, None, None, None


class FoldedEmbedding(Function):
    """Rows of an embedding; its gradient touches few rows, and only their folds are added, (rows × buckets) float32."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, parameter: Tensor, matrix: Tensor, sink: Tensor, padding_idx: int | None
    ) -> Tensor:
        ctx.save_for_backward(ids, matrix)
        ctx.sink, ctx.padding_idx = sink, padding_idx
        return F.embedding(ids, parameter, padding_idx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        (dy,) = grads
        ids, matrix = ctx.saved_tensors
        folded = dy.reshape(-1, dy.shape[-1]).float() @ matrix
        flat = ids.reshape(-1)
        if ctx.padding_idx is not None:  # torch gives the padding row no gradient
            folded[flat == ctx.padding_idx] = 0
        ctx.sink.index_add_(0, flat, folded)
        return None, None, None, None, None


class Sketcher:
    """Turns one parameter's gradient into its part of the row."""

    def __init__(self, layout: SketchLayout) -> None:
        self.layout = layout
        self._matrices: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def apply(self, name: str, grad: Tensor) -> Tensor:
        """The kept numbers of parameter `name`, a 1-D float32 tensor on the gradient's device. Linear in `grad`."""
        tensor = self.layout.by_name[name]
        if tensor.how == "whole":
            return grad.detach().reshape(-1).float()
        if tensor.how == "stride":
            return grad.detach().reshape(-1)[tensor.first :: self.layout.spec.stride].float()
        rows = fold_rows(tensor, grad.detach()).float()
        return (rows @ self.matrix(tensor, rows.device, torch.float32)).reshape(-1)

    def matrix(self, tensor: TensorSketch, device: torch.device, dtype: torch.dtype) -> Tensor:
        """S of one folded parameter: (inputs × buckets), one ±1 in every row. Kept, since every batch asks for it."""
        key = (tensor.name, device, dtype)
        if key not in self._matrices:
            signs, buckets = signs_and_buckets(self.layout.spec.seed, tensor.name, tensor.inputs, tensor.buckets)
            dense = np.zeros((tensor.inputs, tensor.buckets), dtype=np.float32)
            dense[np.arange(tensor.inputs), buckets] = signs
            self._matrices[key] = torch.from_numpy(dense).to(device=device, dtype=dtype)
        return self._matrices[key]


def fold_rows(tensor: TensorSketch, grad: Tensor) -> Tensor:
    """`grad` as (rows × inputs), the inputs being what the fold sums over."""
    if len(tensor.shape) > 3:
        return grad.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
    return grad.movedim(tensor.axis, -1).reshape(-1, tensor.inputs)
