"""Source: an input of a merge, read a few rows at a time as float64."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from merit.base.files import is_own, read_json, write_json
from merit.merge.codec import Float64s, Scratch, decode
from merit.models.checkpoint import ITEM_BYTES, Checkpoint, FilePool, TensorInfo


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


_KEPT = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_LEFT = ("config.json", "adapter_config.json", "trainer_state.json", "merit_merge.json")
_LEFT_ENDS = (".index.json", "_results.json")
_FOLDERS = ("additional_chat_templates",)
_MAX_BYTES = 100_000_000  # a tokenizer is smaller; anything else is data
_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def dtype_name(dtype: str) -> str:
    """safetensors' name of a type → torch's."""
    return _NAMES[dtype]


def copy_side_files(sources: Sequence[Path], target: Path) -> None:
    """Copies what a server needs beside weights; where several folders have a file, the earlier one's is taken."""
    for source in sources:
        for file in sorted(source.iterdir()):
            if is_own(file, source) and _wanted(file) and not (target / file.name).exists():
                _copy(file, target / file.name)
        for name in _FOLDERS:
            for file in sorted((source / name).glob("*.jinja")):
                (target / name).mkdir(exist_ok=True)
                if is_own(file, source) and not (target / name / file.name).exists():
                    _copy(file, target / name / file.name)


def write_config(source: Path, target: Path, dtype: str) -> None:
    """config.json with its type fields set to what was written (`dtype`: safetensors' name)."""
    config = read_json(source / "config.json")
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = None
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.update({key: dtype_name(dtype) for key in ("dtype", "torch_dtype") if key in section})
    write_json(target / "config.json", config)


def _wanted(file: Path) -> bool:
    if file.name in _LEFT or file.name.startswith(".") or file.name.endswith(_LEFT_ENDS):
        return False
    if file.stat().st_size > _MAX_BYTES:
        return False
    return file.suffix in _KEPT or file.name.upper().startswith(_LEGAL)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())
