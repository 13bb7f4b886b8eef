"""A loaded model whose weights are set to any combination of checkpoints, in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merit.base.errors import InputError
from merit.diagnose.aligned import Aligned, Scratch
from merit.models.checkpoint import FilePool
from merit.models.layout import find_layout

BLOCK = 2**18  # elements: a block and its sum stay in the processor's cache


class LiveModel:
    """One model in memory; the checkpoints stay on disk and are read a block at a time.

    Args:
        model: any of the checkpoints, loaded in float32.
        folders: label → checkpoint.

    Raises:
        InputError: checkpoints of different layouts, or a parameter that is not stored under its own name (experts
            that are fused while loading).
    """

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        self.model = model.eval()
        self.aligned = Aligned(folders)
        own = dict(model.named_parameters())
        self.parameters: dict[str, Tensor] = {common: own[name] for common, name in find_layout(own).names.items()}
        for name, parameter in self.parameters.items():
            if self.aligned.shapes.get(name) != tuple(parameter.shape):
                raise InputError(
                    "this parameter is not stored under its own name and shape; such models cannot be diagnosed",
                    file=next(iter(folders.values())),
                    field=name,
                )

    @property
    def trained(self) -> dict[str, Tensor]:
        """Parameters that are not frozen: what a Hessian is of."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}

    @torch.no_grad()
    def set(self, coefficients: Mapping[str, float]) -> None:
        """θ = Σ c_label θ_label, summed in float32. A single coefficient of 1 gives that checkpoint's very weights.

        Raises:
            ValueError: every coefficient is 0.
        """
        used = [(self.aligned.tensors[label], value) for label, value in coefficients.items() if value != 0]
        if not used:
            raise ValueError("a model that is no combination of any")
        sums, blocks = Scratch(BLOCK), Scratch(BLOCK)  # the sum stays in cache; a parameter is written once
        *first, (last, weight) = used
        with FilePool() as files:
            for name, parameter in self.parameters.items():
                flat = parameter.view(-1)
                for start in range(0, flat.numel(), BLOCK):
                    part = flat[start : start + BLOCK]
                    total: Tensor | None = None
                    for tensors, value in first:
                        scratch = sums if total is None else blocks
                        block = scratch.read(files, tensors[name], start, part.numel()).to(part.device, part.dtype)
                        total = block.mul_(value) if total is None else total.add_(block, alpha=value)
                    block = blocks.read(files, last[name], start, part.numel()).to(part.device, part.dtype)
                    if total is None:
                        torch.mul(block, weight, out=part)
                    else:
                        torch.add(total, block, alpha=weight, out=part)

    @torch.no_grad()
    def add_noise(self, sigma: float, seed: int) -> None:
        """Adds Gaussian noise to every row of every matrix, of norm σ ‖row‖ (filter-normalised); vectors stay.

        Rows are the filters of a linear layer. Signs and sizes before scaling depend on seed and name alone, so all
        models get the same noise.
        """
        for name, parameter in self.parameters.items():
            if parameter.ndim < 2:
                continue  # norms and biases: as in the method's own definition, they would drown all else
            rows = parameter.view(-1, parameter.shape[-1])
            digest = hashlib.sha256(f"merit noise {seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            step = max(1, BLOCK // rows.shape[1])
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                noise = torch.randn(part.shape, generator=generator).to(part.device)
                norms = noise.norm(dim=1, keepdim=True).clamp_min(1e-30)
                part += noise * (sigma * part.norm(dim=1, keepdim=True) / norms)
