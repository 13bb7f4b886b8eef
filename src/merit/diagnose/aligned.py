"""Several checkpoints of one model, read in step: a block of the same tensor from each, never a whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merit.base.errors import InputError
from merit.models.checkpoint import Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout

BLOCK = 2**22  # elements
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Aligned:
    """Label → checkpoint, with one spelling for every tensor. A tied head that some store and some do not is left out.

    Raises:
        InputError: a folder is no checkpoint; two differ in their tensors or shapes.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.tensors: dict[str, dict[str, TensorInfo]] = {}  # label → common name → where it is
        for label, folder in folders.items():
            checkpoint = Checkpoint.open(folder)
            names = find_layout(checkpoint.tensors).names
            found = {name: checkpoint.info(own) for name, own in names.items()}
            if checkpoint.tied and checkpoint.head and checkpoint.embedding:
                found = {name: info for name, info in found.items() if info.name != checkpoint.head}
            self.tensors[label] = found
        first, *others = self.tensors
        for label in others:
            self._compare(folders, first, label)
        self.shapes = {name: info.shape for name, info in self.tensors[first].items()}

    def _compare(self, folders: Mapping[str, Path], first: str, label: str) -> None:
        a, b = self.tensors[first], self.tensors[label]
        for name in a.keys() ^ b.keys():
            there, missing = (first, label) if name in a else (label, first)
            raise InputError(f"`{there}` has this tensor, `{missing}` has not", file=folders[missing], field=name)
        for name, info in a.items():
            if b[name].shape != info.shape:
                raise InputError(
                    f"shape {list(b[name].shape)}, but {list(info.shape)} in `{first}`", file=folders[label], field=name
                )

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[str, int, dict[str, NDArray[np.float64]]]]:
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
