"""Writes safetensors shards of known size in any order: headers first, then bytes wherever they are ready."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import write_json
from merit.models.checkpoint import INDEX, ITEM_BYTES, SINGLE


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written."""

    name: str
    dtype: str  # safetensors' name: F64, F32, BF16, F16
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file to be written: its header, and each tensor's offset from the start of the file."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int  # of the whole file


@dataclass(frozen=True)
class ShardPlan:
    """Which tensor goes where. Made before a byte is written, so writers need no order among themselves."""

    shards: tuple[Shard, ...]
    places: Mapping[str, tuple[int, int]]  # tensor → number of its shard, offset in that file
    nbytes: int  # of all tensors, as `total_size` counts

    @classmethod
    def make(cls, tensors: Sequence[OutTensor], shard_bytes: int) -> ShardPlan:
        """Packs tensors in their order, wider types first: then every tensor starts at a multiple of its item size, as
        the format's readers expect. A shard holds at most `shard_bytes` unless one tensor alone is larger.
        """
        groups: list[list[OutTensor]] = []
        room = 0
        for tensor in sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype]):
            if not groups or tensor.nbytes > room:
                groups.append([])
                room = shard_bytes
            groups[-1].append(tensor)
            room -= tensor.nbytes
        names = [SINGLE] if len(groups) == 1 else [_shard_name(i, len(groups)) for i in range(len(groups))]
        shards = tuple(_shard(name, group) for name, group in zip(names, groups, strict=True))
        places = {tensor: (number, at) for number, shard in enumerate(shards) for tensor, at in shard.offsets.items()}
        return cls(shards, places, sum(tensor.nbytes for tensor in tensors))

    def write_index(self, folder: Path) -> None:
        """The index that transformers reads; a single file needs none."""
        if len(self.shards) > 1:
            names = {tensor: shard.name for shard in self.shards for tensor in shard.offsets}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(names.items()))}
            write_json(folder / INDEX, index)


class ShardFiles:
    """The preallocated files of one plan, open for writing at any place, by any thread."""

    def __init__(self, folder: Path, plan: ShardPlan) -> None:
        """Creates missing files with their full size and header; what is there stays.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        self._plan = plan
        self._handles: list[int] = []
        try:
            for shard in plan.shards:
                self._handles.append(_create(folder / shard.name, shard))
        except OSError:
            self.close()
            raise

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Writes `data` at byte `start` of a tensor."""
        number, at = self._plan.places[tensor]
        at += start
        while data:
            done = os.pwrite(self._handles[number], data, at)
            data, at = data[done:], at + done

    def read(self, shard: int, at: int, out: memoryview) -> int:
        """Reads back from byte `at` of a shard; the number of bytes read."""
        return os.preadv(self._handles[shard], [out], at)

    def sync(self) -> None:
        """Makes everything written so far durable."""
        for handle in self._handles:
            os.fdatasync(handle) if hasattr(os, "fdatasync") else os.fsync(handle)

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()


def out_tensor(name: str, dtype: str, shape: tuple[int, ...], elements: int) -> OutTensor:
    """An `OutTensor` with its size worked out.

    Raises:
        InputError: a type that is not written.
    """
    if dtype not in ITEM_BYTES:
        raise InputError(f"type {dtype} cannot be written", field=name)
    return OutTensor(name, dtype, shape, elements * ITEM_BYTES[dtype])


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _shard(name: str, tensors: Sequence[OutTensor]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, at = {}, 0
    for tensor in tensors:
        begins[tensor.name] = at
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return Shard(name, start, {tensor: len(start) + begin for tensor, begin in begins.items()}, len(start) + at)


def _reserve(handle: int, nbytes: int) -> None:
    """Real blocks, not a hole: a full disk shows now, and writing has been twenty times faster than into a hole."""
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except AttributeError:
        os.ftruncate(handle, nbytes)  # macOS
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(handle, nbytes)  # file systems that cannot, such as ZFS


def _create(file: Path, shard: Shard) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(handle).st_size != shard.nbytes:
            _reserve(handle, shard.nbytes)
        os.pwrite(handle, shard.header, 0)
    except OSError:
        os.close(handle)
        raise
    return handle
