"""Checkpoint: a Hugging Face folder seen through its headers. Weights stay on disk until rows are asked for."""

from __future__ import annotations

import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.base.errors import InputError
from merit.base.files import read_json
from merit.models.architecture import architecture_of, find_end, is_computed, is_tied

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_QUANTISED = ("quantization_config", "compression_config")  # the latter: compressed-tensors' former name
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
# What torch.compile, DDP and FSDP put around a module's name.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^(module\.)+")
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")


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
        return cls(path, _unwrapped(tensors), config)

    @property
    def elements(self) -> int:
        """Parameters stored; a tied head that is not stored does not count."""
        return sum(info.elements for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the configuration, or else its class, ties the output head to the input embeddings."""
        return is_tied(self.config)

    @cached_property
    def head(self) -> str | None:
        """Name of the output head, where it is stored."""
        return find_end("head", HEADS, self.tensors, self.config)

    @cached_property
    def embedding(self) -> str | None:
        """Name of the input embeddings."""
        return find_end("embedding", EMBEDDINGS, self.tensors, self.config)

    @cached_property
    def spare(self) -> frozenset[str]:
        """Tensors that a loader computes by itself or has no place for: old buffers, heads that predict further
        tokens."""
        known = architecture_of(self.config)
        loading = known.loading({name: info.shape for name, info in self.tensors.items()}) if known else None
        if loading is not None:
            return loading.spare
        return frozenset(name for name in self.tensors if is_computed(name) or name.startswith(("mtp.", "model.mtp.")))

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor, copied into memory.

        Raises:
            InputError: no such tensor, or its file changed.
        """
        import torch

        info = self.info(name)
        dtypes = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
                  "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
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
        """Asks the kernel to read these bytes ahead, where it can and the last of them are not there already.

        To ask for what is there costs a twentieth of a merge.
        """
        if hasattr(os, "posix_fadvise") and nbytes and not self._cached(info, start + nbytes - 1):
            os.posix_fadvise(self._handle(info.file), info.offset + start, nbytes, os.POSIX_FADV_WILLNEED)

    def _cached(self, info: TensorInfo, at: int) -> bool:
        """Whether byte `at` can be read without waiting for the disk; False where the system cannot tell."""
        try:
            return os.preadv(self._handle(info.file), [bytearray(1)], info.offset + at, os.RWF_NOWAIT) == 1
        except (AttributeError, OSError):
            return False

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
        below = sorted({found.parent.name for found in path.glob("*/*config.json")})[:3]
        hint = f"; did you mean {' or '.join(below)} in it?" if below else ""
        raise InputError(f"not a model: there is no config.json in it{hint}", file=path)
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError("not a model configuration", file=file)
    for key in _QUANTISED:
        if (found := config.get(key)) is not None:
            method = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
            message = f"quantised with {method}: such weights cannot be averaged; merge the unquantised checkpoints"
            raise InputError(message, file=file, field=key)
    return config


def unwrapped(name: str) -> str:
    """A tensor's name without those of wrappers around its modules."""
    return _WRAPPERS.sub("", name)


def _unwrapped(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors by the model's own names, without those of wrappers around its modules.

    Raises:
        InputError: parameters that FSDP flattened, or two names that become one.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if _FLAT.search(name):
            raise InputError(
                "FSDP's flat parameters, not the model's tensors; save a full state dict", file=info.file, field=name
            )
        plain = unwrapped(name)
        if plain in found:
            raise InputError(f"means the same tensor as `{plain}`", file=info.file, field=name)
        found[plain] = info if plain == name else replace(info, name=plain)
    return found


def read_index(path: Path) -> dict[str, str]:
    """Tensor → shard, as the index of a folder says.

    Raises:
        InputError: no index of shards, or one of them is missing or outside the folder.
    """
    file, field = path / INDEX, "weight_map"
    index = read_json(file)
    names = index.get(field) if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise InputError("not a safetensors index: it must map names to files", file=file, field=field)
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"names {shard!r}, which is no shard in this folder", file=file, field=field)
        if not (path / shard).is_file():
            count = sum(value == shard for value in names.values())
            raise InputError(f"the shard {shard} is missing ({count} tensors)", file=file, field=field)
    return names


def no_weights(path: Path, *, field: str | None = None) -> InputError:
    """What is wrong with a folder without safetensors."""
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES):
        message = f"the weights are pickled ({pickles[0]}), which can run code when loaded; convert them to safetensors"
    else:
        message = "no .safetensors weights in this folder"
    return InputError(message, file=path, field=field)


def _sharded(path: Path) -> dict[str, TensorInfo]:
    file, names = path / INDEX, read_index(path)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(names.values())):
        for info in read_header(path / shard):
            if names.get(info.name) != shard:
                where = names.get(info.name)
                raise InputError(
                    f"in {shard}, but the index " + (f"places it in {where}" if where else "does not list it"),
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
    raise no_weights(path)


WHOLE = ("I64", "I32", "U8", "BOOL")  # buffers, such as positions: kept where all inputs have the same
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}  # what can be read
_OTHER = {"I8", "U16", "I16", "U32", "U64", "C64"}
_PACKED = re.compile(r"\.(qweight|qzeros|g_idx|weight|absmax|quant_map|weight_(packed|shape))$")
_NOTES = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `dtype` is safetensors' name for it: F64, F32, BF16, F16, or one of `WHOLE`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of one row: the last dimension; 1-D and 0-D tensors are one row."""
        return self.shape[-1] if self.shape else 1


def read_header(file: Path) -> list[TensorInfo]:
    """The tensors of one file, in the order of their bytes.

    Raises:
        InputError: truncated, damaged, or holding a type that cannot be averaged; names the file and the tensor.
    """
    entries, data, size = read_entries(file)
    found = [_tensor(file, name, entry, data) for name, entry in entries.items()]
    found.sort(key=lambda info: (info.offset, info.nbytes))
    _check_contiguous(file, found, data, size)
    return found


def read_entries(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header's entry for each tensor, unchecked; where the data begins, and the file's size, in bytes.

    Raises:
        InputError: no plain file, or its header is cut short or damaged.
    """
    header, data, size = _header(file)
    return {name: entry for name, entry in header.items() if name != _NOTES}, data, size


def read_notes(file: Path) -> dict[str, str]:
    """The header's notes (`__metadata__`).

    Raises:
        InputError: as `read_entries`.
    """
    found: dict[str, str] = _header(file)[0].get(_NOTES, {})
    return found


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    try:
        if file.exists() and not file.is_file():
            raise InputError("not a plain file", file=file)
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                what = "not a whole safetensors file: the header is longer than the file or over 100 MB"
                if start == b"version ":
                    what = "a pointer of Git LFS, not the weights; run `git lfs pull` in its folder"
                raise InputError(what, file=file)
            text = handle.read(length)
    except FileNotFoundError as error:
        raise InputError("no such file", file=file) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused)
        if b"\\u" in text:  # only so can half a surrogate pair come in, which other readers refuse
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged header: {str(error)[:200]}", file=file) from error
    if not isinstance(header, dict):
        raise InputError("damaged header: not a JSON object", file=file)
    notes = header.get(_NOTES, {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise InputError("damaged header: `__metadata__` must hold text", file=file, field=_NOTES)
    return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name appears twice")
    return value


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _tensor(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError("damaged header: dtype, shape or data_offsets is missing", file=file, field=name) from error
    packed = dtype in WHOLE and (_PACKED.search(name) or (dtype == "U8" and not is_computed(name)))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES or packed:
        if isinstance(dtype, str) and (packed or dtype in _OTHER or dtype.startswith(("F8", "F6", "F4"))):
            raise InputError(
                f"type {dtype}: integer and quantised tensors cannot be averaged; merge the unquantised checkpoints",
                file=file,
                field=name,
            )
        raise InputError(f"damaged header: unknown type {str(dtype)[:40]!r}", file=file, field=name)
    numbers = [*shape, begin, end] if isinstance(shape, list) and len(shape) <= 16 else [None]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise InputError("damaged header: shape or data_offsets is not made of sizes", file=file, field=name)
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != nbytes:
        raise InputError(
            f"damaged header: {dtype} {shape} is {nbytes} bytes, but its offsets span {end - begin}",
            file=file,
            field=name,
        )
    return TensorInfo(name, dtype, tuple(shape), file, data + begin, nbytes)


def _check_contiguous(file: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    at = data
    for info in tensors:
        if info.offset != at:
            raise InputError("damaged header: tensors overlap or leave a gap", file=file, field=info.name)
        at += info.nbytes
    if at != size:
        what = "truncated" if size < at else "damaged"
        raise InputError(f"{what}: the header describes {at} bytes, the file has {size}", file=file)
