"""Checkpoints of one model: read in step, a block at a time; and a loaded model set to any combination of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merit.base.errors import InputError
from merit.models.checkpoint import WHOLE, Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout, same_names

_STREAM = 2**22  # elements of each checkpoint that are read at a time
BLOCK = 2**18  # elements: a block and its sum stay in the processor's cache
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Aligned:
    """Checkpoints by label, with one name for every tensor: the first's.

    Left out are a tied head, which some checkpoints do not store; whole numbers; and what only some have and no loader
    needs, such as old buffers of θ0.

    Raises:
        InputError: a folder is no checkpoint; two differ in their tensors or shapes.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        opened = {label: Checkpoint.open(folder) for label, folder in folders.items()}
        self.tensors: dict[str, dict[str, TensorInfo]] = {}  # label → common name → where it is
        for label, checkpoint in opened.items():
            own = find_layout(checkpoint.tensors).names
            same = same_names(next(iter(self.tensors.values()), own), own)
            self.tensors[label] = {
                same.get(name, name): info
                for name, info in ((name, checkpoint.info(stored)) for name, stored in own.items())
                if info.dtype not in WHOLE and not _is_tied_head(checkpoint, info)
            }
        for name in dict.fromkeys(name for found in self.tensors.values() for name in found):
            held = {label: found[name] for label, found in self.tensors.items() if name in found}
            if len(held) == len(opened):
                self._check_shapes(folders, held, name)
            elif all(info.name in opened[label].spare for label, info in held.items()):
                for label in held:
                    del self.tensors[label][name]
            else:
                missing = next(label for label in opened if label not in held)
                raise InputError(
                    f"`{next(iter(held))}` has this tensor, but `{missing}` does not", file=folders[missing], field=name
                )
        self.shapes = {name: info.shape for name, info in next(iter(self.tensors.values())).items()}

    @staticmethod
    def _check_shapes(folders: Mapping[str, Path], held: Mapping[str, TensorInfo], name: str) -> None:
        (first, info), *others = held.items()
        for label, other in others:
            if other.shape != info.shape:
                raise InputError(
                    f"shape {list(other.shape)}, but {list(info.shape)} in `{first}`", file=folders[label], field=name
                )

    def blocks(self, size: int = _STREAM) -> Iterator[tuple[str, int, dict[str, NDArray[np.float64]]]]:
        """Name, first element, and label → (n,) float64, block by block through all tensors."""
        scratch = Scratch(size)
        with FilePool() as files:
            for name, shape in self.shapes.items():
                count = int(np.prod(shape))
                for start in range(0, count, size):
                    n = min(size, count - start)
                    yield (
                        name,
                        start,
                        {
                            label: scratch.read(files, found[name], start, n).to(torch.float64, copy=True).numpy()
                            for label, found in self.tensors.items()
                        },
                    )


def _is_tied_head(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    return checkpoint.tied and checkpoint.embedding is not None and info.name == checkpoint.head


class Scratch:
    """One buffer for blocks of up to `size` elements of any dtype: fresh memory would cost more than the reading."""

    def __init__(self, size: int) -> None:
        self._buffer = torch.empty(8 * size, dtype=torch.uint8)

    def read(self, files: FilePool, info: TensorInfo, start: int, count: int) -> Tensor:
        """(count,) elements of a flattened tensor from `start` on, in its own dtype; valid until the next call."""
        dtype = _DTYPES[info.dtype]
        raw = self._buffer[: count * dtype.itemsize]
        files.read(info, start * dtype.itemsize, raw.numpy())
        return raw.view(dtype)


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
        names = find_layout(own).names
        same = same_names(self.aligned.shapes, names)
        self.parameters: dict[str, Tensor] = {same.get(name, name): own[theirs] for name, theirs in names.items()}
        for name, parameter in self.parameters.items():
            if self.aligned.shapes.get(name) != tuple(parameter.shape):
                raise InputError(
                    "this parameter is not stored under its own name and shape; such models cannot be diagnosed",
                    file=next(iter(folders.values())),
                    field=name,
                )

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that are not frozen; the Hessian is taken with respect to them."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}

    @torch.no_grad()
    def set(self, coefficients: Mapping[str, float]) -> None:
        """θ = Σ c_label θ_label, summed in float32. A single coefficient of 1 gives that checkpoint's very weights.

        Raises:
            ValueError: every coefficient is 0.
        """
        used = [(self.aligned.tensors[label], value) for label, value in coefficients.items() if value != 0]
        if not used:
            raise ValueError("every coefficient is 0")
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
