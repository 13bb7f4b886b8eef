"""Layers whose backward pass keeps the fold of the weight's gradient, and never forms the gradient itself.

For Y = X Wᵀ the gradient is dYᵀX (outputs × inputs). Its fold is dYᵀX S = dYᵀ(X S): X S is made in the forward pass
(tokens × buckets, a hundredth of X, and all of X that is kept), and one thin product in the backward pass adds the fold
into a float32 accumulator, the *sink*. So a third of a training step's arithmetic is gone, and most of the activations
that it stores. The weight is an input of each function only so that autograd calls its backward even where the layer's
own input needs no gradient; it gets none.

`FoldMode` finds every use of a covered weight while the model runs, whatever module it is in. A torch function mode
sees the calls `linear`, `embedding`, `addmm` and `x @ W`, and knows a weight by identity: so Linear, Conv1D,
routers, tied heads, LoRA matrices and fused experts (a 3-D parameter, one expert's slice at a time) need no list of
module classes. A use that it does not recognise is left to autograd, which then forms that parameter's gradient in
full; the engine's hook sketches and frees it, and says which parameters those were. Both kinds of use of one parameter
add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from merit.gradients.sketch import SketchLayout, TensorSketch, signs_and_buckets

_Unused = object()


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
        return functional.linear(x, weight.T if transposed else weight, None if bias is None else bias.to(x.dtype))

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
        return functional.embedding(ids, parameter, padding_idx)

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


class FoldMode(TorchFunctionMode):
    """Active around forward passes.

    Args:
        parameters: the covered parameters by name.
        sinks: parameter name → its part of the row, 1-D float32, which the backward pass adds to.
    """

    def __init__(self, sketcher: Sketcher, parameters: Mapping[str, Tensor], sinks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._sketcher = sketcher
        self._sinks = sinks
        folded = sketcher.layout.by_name
        self._known: dict[int, tuple[Tensor, TensorSketch]] = {
            id(p): (p, folded[name]) for name, p in parameters.items() if folded[name].how == "fold" and p.ndim <= 3
        }
        # Casts are kept, except of weights that are gathered for one layer at a time.
        self._keep_casts = not any(isinstance(p, DTensor) for p in parameters.values())
        self._casts: dict[int, Tensor] = {}  # weights in the autocast dtype
        self._input: tuple[Tensor, Tensor] | None = None  # the last input, and its cast: q, k and v share theirs
        self._handlers: dict[Any, Callable[..., Any]] = {
            functional.linear: self._linear,
            functional.embedding: self._embedding,
            torch.addmm: self._addmm,
            torch.matmul: self._matmul,
            torch.mm: self._matmul,
            torch.Tensor.matmul: self._matmul,
            torch.Tensor.__matmul__: self._matmul,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if handler is not None and torch.is_grad_enabled():
            result = handler(*args, **(kwargs or {}))
            if result is not _Unused:
                return result
        return func(*args, **(kwargs or {}))

    def tell(self, weight: Tensor, name: str) -> None:
        """Parameter `name` appears as `weight` now: a sharded one, gathered while its module runs."""
        tensor = self._sketcher.layout.by_name[name]
        if tensor.how == "fold" and weight.ndim <= 3:
            self._known[id(weight)] = (weight, tensor)

    def forget_input(self) -> None:
        """Lets go of the last input; call it after each forward pass."""
        self._input = None

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return self._fold(x, weight, bias, transposed=False)

    def _matmul(self, x: Tensor, weight: Tensor, **rest: Any) -> Any:
        return _Unused if rest or x.ndim < 2 else self._fold(x, weight, None, transposed=True)

    def _addmm(self, bias: Tensor, x: Tensor, weight: Tensor, **rest: Any) -> Any:
        return _Unused if rest or bias.ndim != 1 else self._fold(x, weight, bias, transposed=True)

    def _fold(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Any:
        found = self._find(weight)
        if found is None:
            return _Unused
        parameter, tensor, index = found
        # The layout says which dimension is the input; a use along the other one would be another sketch.
        if tensor.axis != parameter.ndim - (2 if transposed else 1):
            return _Unused
        sink = self._sinks[tensor.name]
        if index is None:
            sink = sink.view(-1, tensor.buckets)
        else:
            sink = sink.view(parameter.shape[0], -1, tensor.buckets)[index]
        x, weight = self._cast(x, parameter, weight, index)
        matrix = self._sketcher.matrix(tensor, x.device, x.dtype)
        return FoldedLinear.apply(x, parameter, weight.detach(), bias, matrix, sink, transposed)

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Any:
        found = self._find(weight)
        if found is None or max_norm is not None or scale_grad_by_freq or sparse or found[1].axis != 1:
            return _Unused
        parameter, tensor, _ = found
        if padding_idx is not None and padding_idx < 0:
            padding_idx += parameter.shape[0]
        matrix = self._sketcher.matrix(tensor, parameter.device, torch.float32)
        sink = self._sinks[tensor.name].view(-1, tensor.buckets)
        return FoldedEmbedding.apply(input, parameter, matrix, sink, padding_idx)

    def _find(self, weight: Tensor) -> tuple[Tensor, TensorSketch, int | None] | None:
        """The covered parameter that `weight` is, or is one expert's slice of (then with the expert's index)."""
        known = self._known.get(id(weight))
        if known is not None:
            return None if weight.ndim != 2 else (*known, None)
        base = weight._base
        known = None if base is None else self._known.get(id(base))
        if known is None:
            return None
        parameter, tensor = known
        if parameter.ndim != 3 or weight.shape != parameter.shape[1:] or not weight.is_contiguous():
            return None
        offset = weight.storage_offset() - parameter.storage_offset()
        return parameter, tensor, offset // weight.numel()

    def _cast(self, x: Tensor, parameter: Tensor, weight: Tensor, index: int | None) -> tuple[Tensor, Tensor]:
        """Input and weight in the autocast dtype, where autocast is on. Weights are cast once, and kept."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if weight.dtype != dtype:
            if not self._keep_casts:
                weight = weight.detach().to(dtype)
            else:
                if id(parameter) not in self._casts:
                    self._casts[id(parameter)] = parameter.detach().to(dtype)
                cast = self._casts[id(parameter)]
                weight = cast if index is None else cast[index]
        if x.dtype != dtype:
            if self._input is None or self._input[0] is not x:
                self._input = (x, x.to(dtype))
            x = self._input[1]
        return x, weight
