"""Checkpoint: a Hugging Face folder seen through its headers. Weights stay on disk until rows are asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merit.errors import InputError
from merit.io import read_json
from merit.models.header import TensorInfo, read_header

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@dataclass(frozen=True)
class Checkpoint:
    """Names → where their bytes are, and the configuration. Opening reads headers only."""

    path: Path
    tensors: Mapping[str, TensorInfo]  # in the order of shards and bytes
    config: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads config, index and headers of a folder, and checks them against each other and the files' sizes.

        Raises:
            InputError: no config, pickled weights only, a missing or truncated shard, an index that does not fit
                its shards, a quantised model, a tensor that cannot be averaged. Names file and tensor.
        """
        if not path.is_dir():
            raise InputError("no such folder", file=path)
        config = _config(path)
        if (path / SINGLE).is_file():
            tensors = {info.name: info for info in read_header(path / SINGLE)}
        elif (path / INDEX).is_file():
            tensors = _sharded(path)
        else:
            tensors = _unindexed(path)
        if not tensors:
            raise InputError("no tensors in this checkpoint", file=path)
        return cls(path, tensors, config)

    @property
    def elements(self) -> int:
        """Parameters stored; a tied head that is not stored does not count."""
        return sum(info.elements for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the configuration ties the output head to the input embeddings."""
        text = self.config.get("text_config")
        nested = text.get("tie_word_embeddings") if isinstance(text, dict) else None
        return bool(self.config.get("tie_word_embeddings", nested))

    @property
    def head(self) -> str | None:
        """Name of the output head, where it is stored."""
        return next((name for name in self.tensors if name.endswith("lm_head.weight")), None)

    @property
    def embedding(self) -> str | None:
        """Name of the input embeddings."""
        return next((name for name in self.tensors if name.endswith(_EMBEDDINGS)), None)

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor, copied into memory.

        Raises:
            InputError: no such tensor, or its file changed.
        """
        import torch

        info = self.info(name)
        dtypes = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
        found = torch.empty(info.shape, dtype=dtypes[info.dtype])
        if info.nbytes:
            with FilePool() as files:
                files.read(info, 0, found.reshape(-1).view(torch.uint8).numpy())
        return found

    def info(self, name: str) -> TensorInfo:
        """Where tensor `name` lies.

        Raises:
            InputError: no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise InputError("no such tensor in this checkpoint", file=self.path, field=name) from None


class FilePool:
    """Open files of one thread, the least recently used closed first: a thousand shards need no thousand handles."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, info: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with the bytes of `info` from byte `start` on, through `pread`: nothing stays mapped.

        Raises:
            InputError: the file ends early or cannot be read.
        """
        view = out.data
        at = info.offset + start
        try:
            handle = self._handle(info.file)
            while view:
                got = os.preadv(handle, [view], at)
                if not got:
                    raise InputError("the file ends early; did it change?", file=info.file, field=info.name)
                view, at = view[got:], at + got
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=info.file, field=info.name) from error

    def expect(self, info: TensorInfo, start: int, nbytes: int) -> None:
        """Tells the kernel that these bytes are wanted next, where it listens."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle(info.file), info.offset + start, nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _handle(self, file: Path) -> int:
        handle = self._open.pop(file, None)
        if handle is None:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            handle = os.open(file, os.O_RDONLY)
        self._open[file] = handle
        return handle


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise InputError("not a model: there is no config.json in it", file=path)
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError("not a model configuration", file=file)
    if "quantization_config" in config:
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise InputError(
            f"quantised with {method}: such weights cannot be averaged; merge the unquantised checkpoints",
            file=file,
            field="quantization_config",
        )
    return config


def _sharded(path: Path) -> dict[str, TensorInfo]:
    file = path / INDEX
    index = read_json(file)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise InputError("not a safetensors index: no `weight_map` from names to files", file=file)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"names {shard!r}, which is no shard in this folder", file=file)
        if not (path / shard).is_file():
            count = sum(value == shard for value in names.values())
            raise InputError(f"the shard {shard} is missing ({count} tensors)", file=file)
        for info in read_header(path / shard):
            if names.get(info.name) != shard:
                where = names.get(info.name)
                raise InputError(
                    f"in {shard}, but the index says " + (f"{where}" if where else "nothing of it"),
                    file=file,
                    field=info.name,
                )
            tensors[info.name] = info
    if absent := sorted(names.keys() - tensors.keys()):
        raise InputError(f"in the index, but not in {names[absent[0]]}", file=file, field=absent[0])
    return tensors


def _unindexed(path: Path) -> dict[str, TensorInfo]:
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return {info.name: info for info in read_header(files[0])}
    if files:
        raise InputError(f"{len(files)} safetensors files, but no {INDEX} says which belong to the model", file=path)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"the weights are pickled ({pickles[0]}), which can run code when loaded; convert them to safetensors",
            file=path,
        )
    raise InputError("no .safetensors weights in this folder", file=path)
