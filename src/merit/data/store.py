"""Encoded datasets on disk: one Arrow IPC file each, memory-mapped when read. Needs neither torch nor transformers.

The schema's metadata says what the file depends on; the last, empty batch's metadata holds the `DatasetSummary`,
which is only known at the end. Both travel with the rows, so a file is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from merit.base.errors import InputError
from merit.base.files import atomic_path
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary

VERSION = 1
_BATCH = 256
_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        ("id", pa.binary(16)),  # content hash
        ("held_out", pa.bool_()),
        ("input_ids", _IDS),
        ("labels", _IDS),
        ("supervised", pa.int32()),
        ("truncated", pa.bool_()),
        ("prompt_ids", _IDS),
        ("prompt_text", pa.string()),
        ("reference", pa.string()),
        ("verifier", pa.string()),
    ]
)
# Of a vision-language model. The bytes are those of the image files: a branch trains wherever its data is.
IMAGES = "pictures"  # not `images`: trainers take that for data that they should process themselves
_IMAGE_SCHEMA = _SCHEMA.append(pa.field(IMAGES, pa.list_(pa.large_binary()))).append(
    pa.field("prompt_images", pa.int32())
)
_BATCH_BYTES = 64 * 2**20  # of images
_ENCODED = ("input_ids", "labels", "truncated", "prompt_images")  # columns that are fields of `Encoded`


def write_store(
    path: Path,
    examples: Iterable[StoredExample],
    *,
    depends: str = "",
    summary: Callable[[], DatasetSummary] | None = None,
    images: bool = False,
) -> None:
    """Streams `examples` into `path`, atomically.

    Args:
        depends: the fingerprint of all that the rows depend on.
        summary: called when all rows are written.
        images: whether rows may have images; without, the file has no column for them.

    Raises:
        InputError, StageError: `path` may not be written, the disk is full; also whatever `examples` raises. Nothing
            is left behind then.
    """
    meta = json.dumps({"version": VERSION, "depends": depends})
    schema = (_IMAGE_SCHEMA if images else _SCHEMA).with_metadata({"merit": meta})
    with atomic_path(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _batches(examples):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        text = summary().model_dump_json() if summary is not None else ""
        length = sink.tell()
        last = {"summary": text, "length": str(length), "seal": _seal(part, length, text)}
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema), custom_metadata=last)


def _batches(examples: Iterable[StoredExample]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0  # bytes of images
    for example in examples:
        batch.append(example.columns())
        size += sum(map(len, example.encoded.images))
        if len(batch) == _BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class EncodedDataset:
    """A stored dataset, memory-mapped.

    Attributes:
        table: the Arrow table; rows are in file order.
        depends: the fingerprint given when it was written.
        summary: the summary given when it was written.
    """

    def __init__(
        self, path: Path, table: Any, depends: str, summary: DatasetSummary | None, last: dict[bytes, bytes]
    ) -> None:
        self.path, self.table, self.depends, self.summary = path, table, depends, summary
        self._last = last  # metadata of the last batch

    @classmethod
    def open(cls, path: Path) -> EncodedDataset:
        """Maps the file.

        Raises:
            InputError: missing, truncated, damaged, or of another version; names the file.
        """
        try:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                meta = json.loads((reader.schema.metadata or {}).get(b"merit", b"{}"))
                known = any(reader.schema.equals(schema) for schema in (_SCHEMA, _IMAGE_SCHEMA))
                if meta.get("version") != VERSION or not known:
                    raise InputError("written by another version of merit; remove it and run again", file=path)
                last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
                told = dict(last.custom_metadata or {})
                text = told.get(b"summary", b"")
                table = reader.read_all()
            table.validate()
            # Wrong offsets would read outside the file; checking them touches 4 bytes a row and column.
            for name in ("input_ids", "labels", "prompt_ids"):
                table.column(name).validate(full=True)
            for name in ("prompt_text", "reference", "verifier"):
                table.column(name).cast(pa.binary()).validate(full=True)
            summary = DatasetSummary.model_validate_json(text) if text else None
        except FileNotFoundError:
            raise InputError("no such file; the data stage writes it", file=path) from None
        except (OSError, pa.ArrowException, ValidationError, ValueError, IndexError) as error:
            raise InputError(f"damaged or incomplete; remove it and run again ({_short(error)})", file=path) from error
        return cls(path, table, str(meta["depends"]), summary, told)

    def intact(self) -> bool:
        """Whether every row is as it was written; reads the whole file."""
        text, length = (self._last.get(key, b"0").decode(errors="replace") for key in (b"summary", b"length"))
        return length.isdigit() and self._last.get(b"seal") == _seal(self.path, int(length), text).encode()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the file itself, instead of receiving a copy.
        return EncodedDataset.open, (self.path,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> StoredExample:
        """The example in `row` of the file.

        Raises:
            IndexError: there is no such row.
        """
        index = int(row)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        part = self._batches[batch].slice(index - int(self._starts[batch]), 1)
        images: Sequence[bytes] = ()
        if IMAGES in part.schema.names:
            images = StoredImages(part.column(IMAGES)[0])
            part = part.drop_columns([IMAGES])
        return StoredExample.from_columns(part.to_pylist()[0], images)

    def __iter__(self) -> Iterator[StoredExample]:
        return (self[row] for row in range(len(self)))

    @property
    def has_images(self) -> bool:
        """Whether any row has one; reads offsets only."""
        if IMAGES not in self.table.column_names:
            return False
        return any(len(batch.column(IMAGES).flatten()) for batch in self._batches)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row, after truncation."""
        return self._numpy(lambda batch: np.diff(batch.column("input_ids").offsets.to_numpy()))

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """(rows,) supervised tokens of each row."""
        return self._numpy(lambda batch: batch.column("supervised").to_numpy())

    @cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """(rows,) which rows were cut."""
        flags = self._numpy(lambda batch: batch.column("truncated").to_numpy(zero_copy_only=False))
        return flags.astype(np.bool_)

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """(rows, 2) content hashes, high half first."""
        parts = [np.zeros((0, 2), np.uint64)]
        for batch in self._batches:
            raw = b"".join(batch.column("id").to_pylist())
            parts.append(np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2))
        return np.concatenate(parts)

    @cached_property
    def train(self) -> NDArray[np.int64]:
        """Rows to train on, in order of content hash: the order of rows in the source does not matter."""
        return self._ordered(held_out=False)

    @cached_property
    def held_out(self) -> NDArray[np.int64]:
        """Held-out rows, in order of content hash."""
        return self._ordered(held_out=True)

    def weighted_train(self, weight: float, seed: int) -> NDArray[np.int64]:
        """Rows for one epoch, shuffled by `seed`.

        Every row comes floor(weight) times; of the rest, the first round(fraction · n) in order of content hash come
        once more, whatever the seed, so that branches and epochs agree on which rows count. At least one row.
        """
        rows = self.train
        whole, fraction = divmod(weight, 1.0)
        extra = round(fraction * len(rows))
        if whole == 0 and extra == 0:
            extra = min(1, len(rows))
        chosen = np.concatenate([*[rows] * int(whole), rows[:extra]]).astype(np.int64)
        return np.random.default_rng(seed).permutation(chosen)

    @cached_property
    def _batches(self) -> list[Any]:
        batches: list[Any] = self.table.to_batches()
        return batches

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)]).astype(np.int64)

    def _numpy(self, column: Any) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = [np.asarray(column(batch), np.int64) for batch in self._batches]
        joined: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *parts])
        return joined

    def _ordered(self, *, held_out: bool) -> NDArray[np.int64]:
        flags = self._numpy(lambda batch: batch.column("held_out").to_numpy(zero_copy_only=False)).astype(np.bool_)
        order: NDArray[np.int64] = np.lexsort((self.ids[:, 1], self.ids[:, 0])).astype(np.int64)
        chosen: NDArray[np.int64] = order[flags[order] == held_out]
        return chosen


def _seal(path: Path, length: int, summary: str) -> str:
    """SHA-256 of a file's first bytes and its summary."""
    digest = hashlib.sha256(summary.encode())
    with path.open("rb") as handle:
        while length > 0 and (chunk := handle.read(min(length, 1 << 20))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


class StoredImages(Sequence[bytes]):
    """The images of one row, copied out of the file at each access: a thousand rows cost no memory for theirs."""

    def __init__(self, scalar: Any) -> None:
        self._scalar = scalar  # pyarrow's list, which points into the file

    def __len__(self) -> int:
        return len(self._scalar)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self._scalar[index].as_py()


@dataclass(frozen=True)
class StoredExample:
    """One row of a file: an encoded example, and what its evaluation needs."""

    id: str
    encoded: Encoded
    held_out: bool
    prompt_ids: list[int]  # what greedy decoding starts from
    prompt_text: str
    reference: str | None = None
    verifier: str | None = None

    def columns(self) -> dict[str, Any]:
        """Column → value."""
        row, encoded = dict(self.__dict__), self.encoded
        del row["encoded"]
        own = {name: getattr(encoded, name) for name in _ENCODED}
        return {**row, **own, "id": bytes.fromhex(self.id), "supervised": encoded.supervised, IMAGES: encoded.images}

    @classmethod
    def from_columns(cls, row: dict[str, Any], images: Sequence[bytes]) -> StoredExample:
        """The example that `columns` wrote, with the images of its row."""
        own = {name: row.pop(name) for name in _ENCODED if name in row}
        del row["supervised"]  # counted again from the labels
        return cls(**{**row, "id": row["id"].hex()}, encoded=Encoded(**own, images=images))


_MIX = np.uint64(0x9E3779B97F4A7C15)


def calibration_rows(dataset: EncodedDataset, n: int) -> NDArray[np.int64]:
    """`n` rows of `dataset.train`, or all when there are fewer.

    They are the smallest by a second hash of the content: the same whatever the order of the source, and unlike the
    first rows in order of content hash, not the ones that a weight below 1 keeps.

    Returns:
        (min(n, train rows),) int64 row numbers, in order of the second hash.
    """
    rows = dataset.train
    keys = _second_hash(dataset.ids[rows])
    # Ties are broken by the first hash, which is the order of `train`.
    return rows[np.argsort(keys, kind="stable")][:n]


def _second_hash(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(rows,) splitmix64 of the low half: the high half orders `train`, and the two are independent bits of SHA-256."""
    x = ids[:, 1] + _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
