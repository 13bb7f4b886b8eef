"""Applies a sketch to gradients that exist in full: the reference for everything faster, and its fallback."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from merit.gradients.sketch import SketchLayout, TensorSketch, signs_and_buckets


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
