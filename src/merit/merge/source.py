"""Source: an input of a merge, read a few rows at a time as float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from merit.merge.codec import Float64s, Scratch, decode
from merit.models.checkpoint import Checkpoint, FilePool
from merit.models.header import ITEM_BYTES, TensorInfo


class Source(Protocol):
    """What the engine needs of an input."""

    @property
    def path(self) -> Path: ...

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        """Fills `out` (n,) with elements `start` to `start + n` of the flattened tensor `name`, exactly.

        `base` holds the same elements of θ0, where there is one.
        """

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        """Says that these elements are wanted soon."""


@dataclass(frozen=True)
class CheckpointSource:
    """A whole checkpoint."""

    path: Path
    tensors: Mapping[str, TensorInfo]  # the output's names → this checkpoint's tensors

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        raw = scratch.raw[: out.size * size]
        files.read(info, start * size, raw)
        decode(raw, info.dtype, out, scratch)

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        files.expect(info, start * size, count * size)


def checkpoint_source(checkpoint: Checkpoint, names: Mapping[str, str]) -> CheckpointSource:
    """`names` maps the output's names to the checkpoint's own."""
    return CheckpointSource(checkpoint.path, {name: checkpoint.info(own) for name, own in names.items()})
