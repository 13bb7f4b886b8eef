"""Reads the header of a safetensors file, and trusts nothing in it. No weights are read, no code is run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.errors import InputError

ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # what can be averaged
_OTHER = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "C64"}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `dtype` is safetensors' name for it (F64, F32, BF16 or F16)."""

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
    try:
        if file.exists() and not file.is_file():
            raise InputError("not a plain file", file=file)
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                raise InputError(
                    "not a whole safetensors file: the header is longer than the file or over 100 MB", file=file
                )
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
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise InputError("damaged header: its notes are no text", file=file, field="__metadata__")
    data = 8 + length
    found = [_tensor(file, name, entry, data) for name, entry in header.items() if name != "__metadata__"]
    found.sort(key=lambda info: (info.offset, info.nbytes))
    _check_contiguous(file, found, data, size)
    return found


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
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        if isinstance(dtype, str) and (dtype in _OTHER or dtype.startswith(("F8", "F6", "F4"))):
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
