"""Finds every use of a covered weight while the model runs, whatever module it is in, and folds its gradient there.

A torch function mode sees the calls `F.linear`, `F.embedding`, `addmm` and `x @ W`, and knows a weight by identity: so
Linear, Conv1D, routers, tied heads, LoRA matrices and fused experts (a 3-D parameter, one expert's slice at a time)
need no list of module classes. A use that it does not recognise is left to autograd, which then forms that parameter's
gradient in full; the engine's hook sketches and frees it, and says which parameters those were. Both kinds of use of
one parameter add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from merit.gradients.fold import FoldedEmbedding, FoldedLinear, Sketcher
from merit.gradients.sketch import TensorSketch

_Unused = object()


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
            F.linear: self._linear,
            F.embedding: self._embedding,
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
