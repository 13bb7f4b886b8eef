"""An adapter as a source of a merge: its base with the update added, a few rows at a time (θ_k = θ0 + s B A)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from merit.errors import InputError
from merit.merge.codec import Float64s, Scratch, decode
from merit.merge.source import CheckpointSource
from merit.models.adapter import Adapter, LowRank
from merit.models.checkpoint import FilePool
from merit.models.header import ITEM_BYTES, TensorInfo

_CACHE_BYTES = 64_000_000  # of factors that several threads use at once

Matrix = NDArray[np.float64]


class FactorCache:
    """Whole factors in float64, shared by threads and adapters; the least recently used go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Path, str], Matrix] = OrderedDict()
        self._bytes = 0

    def get(self, files: FilePool, info: TensorInfo) -> Matrix:
        """The factor `info`, as (rows, columns)."""
        key = (info.file, info.name)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        value = read_rows(files, info, 0, info.shape[0])
        with self._lock:
            if key not in self._known:
                self._known[key] = value
                self._bytes += value.nbytes
            while self._bytes > _CACHE_BYTES and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].nbytes
        return value


@dataclass(frozen=True)
class AdapterSource:
    """An adapter over the base that the merge names. Tensors it does not change are the base's."""

    path: Path
    adapter: Adapter
    base: CheckpointSource
    tensors: Mapping[str, TensorInfo]  # the output's names → the base's tensors
    cache: FactorCache = field(compare=False)

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        """As `Source.read` says."""
        own = self.tensors[name]
        if (whole := self.adapter.full.get(own.name)) is not None:
            size = ITEM_BYTES[whole.dtype]
            raw = scratch.raw[: out.size * size]
            files.read(whole, start * size, raw)
            decode(raw, whole.dtype, out, scratch)
        elif base is not None:
            np.copyto(out, base)
        else:
            self.base.read(files, name, start, out, None, scratch)
        if (update := self.adapter.updates.get(own.name)) is not None:
            self._add(files, update, own, start, out)

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        """The base is asked for by the merge itself; factors are small."""

    def _add(self, files: FilePool, update: LowRank, weight: TensorInfo, start: int, out: Float64s) -> None:
        columns = weight.shape[1]
        first, last = start // columns, -(-(start + out.size) // columns)
        if update.transposed:
            left = self.cache.get(files, update.a)[:, first:last].T
            change = left @ self.cache.get(files, update.b).T
        else:
            change = read_rows(files, update.b, first, last) @ self.cache.get(files, update.a)
        change *= update.scale
        at = start - first * columns
        out += change.reshape(-1)[at : at + out.size]
        if update.magnitude is not None:
            if at or out.size % columns:
                raise InputError("a row with DoRA does not fit the memory budget; give more", field=weight.name)
            rows = out.reshape(-1, columns)
            norms = np.sqrt(np.square(rows).sum(axis=1))
            size = read_rows(files, update.magnitude, 0, update.magnitude.elements).reshape(-1)[first:last]
            rows *= (size / norms)[:, None]


def one_blas_thread() -> AbstractContextManager[object]:
    """Keeps BLAS from starting threads below ours: on two busy cores that made products twelve times slower."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    return cast(AbstractContextManager[object], threadpool_limits(1, "blas"))


def read_rows(files: FilePool, info: TensorInfo, first: int, last: int) -> Matrix:
    """Rows `first` to `last` of a matrix (or elements of a vector) in float64."""
    count = (last - first) * (info.shape[1] if len(info.shape) > 1 else 1)
    row = count // max(1, last - first)
    size = ITEM_BYTES[info.dtype]
    raw = np.empty(count * size, np.uint8)
    files.read(info, first * row * size, raw)
    out = np.empty(count)
    decode(raw, info.dtype, out, Scratch.make(count if info.dtype == "BF16" else 0))
    return out.reshape(last - first, row)
