"""File sources: JSON Lines, JSON, CSV and Parquet, each streamed."""

from __future__ import annotations

import contextlib
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from merit.data.json_stream import stream_json
from merit.data.row import MAX_ROW_BYTES, Row
from merit.errors import InputError, out_of_memory
from merit.io import sha256_file

_BATCH = 128  # rows of a Parquet file decoded at once
_GROUP_BYTES = 256 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class _File(ABC):
    path: Path
    place: str
    scores: bool = False

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """As `Source.rows`."""

    def fingerprint(self) -> str:
        with self.readable():
            return f"{type(self).__name__}:{sha256_file(self.path)}"

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=self.place) from error

    def error(self, message: str, number: int | None = None) -> InputError:
        return InputError(message, file=self.place, line=number)

    def lines(self, handle: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Numbered lines, each bounded, without a byte-order mark."""
        number = 0
        while raw := handle.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(raw) > MAX_ROW_BYTES:
                raise self.error(f"a line is longer than {MAX_ROW_BYTES:,} bytes", number)
            yield number, raw.removeprefix(_BOM) if number == 1 else raw


class JsonLinesFile(_File):
    """One JSON object a line; blank lines are passed over."""

    def rows(self) -> Iterator[Row]:
        size = max(self.path.stat().st_size, 1)
        read = 0
        with self.readable(), self.path.open("rb") as handle:
            for number, raw in self.lines(handle):
                read += len(raw)
                done = min(read / size, 1.0)
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
                except json.JSONDecodeError as error:
                    problem = f"not valid JSON: {error.msg} (column {error.colno})"
                    yield Row(number, done, error=self.error(problem, number))
                except UnicodeDecodeError:
                    yield Row(number, done, error=self.error("not valid UTF-8", number))
                except (ValueError, RecursionError) as error:
                    # A number of a million digits, or a thousand nested brackets.
                    yield Row(number, done, error=self.error(f"not valid JSON: {error}", number))
                else:
                    yield Row(number, done, value)


class JsonFile(_File):
    """An array of objects (or objects one after another), parsed piece by piece.

    Memory is bounded by the largest object, which may have up to `MAX_ROW_BYTES` characters. What follows a syntax
    error cannot be read: it is reported as the last row.
    """

    def rows(self) -> Iterator[Row]:
        size = max(self.path.stat().st_size, 1)
        with self.readable(), self.path.open("rb") as raw:
            if raw.read(len(_BOM)) != _BOM:
                raw.seek(0)
            yield from stream_json(raw, place=self.place, size=size)


class CsvFile(_File):
    """A header line, then one row a record; fields may hold line breaks when they are quoted."""

    delimiter = ","

    def rows(self) -> Iterator[Row]:
        size = max(self.path.stat().st_size, 1)
        read = 0
        line = 0

        def text(handle: IO[bytes]) -> Iterator[str]:
            nonlocal read, line
            for line, raw in self.lines(handle):
                read += len(raw)
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError:
                    raise self.error("not valid UTF-8", line) from None

        # The module's own limit of 131,072 characters a field is shorter than many answers; it has no other handle.
        csv.field_size_limit(MAX_ROW_BYTES)
        with self.readable(), self.path.open("rb") as handle:
            reader = csv.reader(text(handle), delimiter=self.delimiter, strict=True)
            header: list[str] | None = None
            while True:
                start = line + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise self.error(f"not valid CSV: {error}", start) from None
                done = min(read / size, 1.0)
                if not fields:
                    continue
                if header is None:
                    header = fields
                    self._check_header(header, start)
                elif len(fields) != len(header):
                    problem = f"{len(fields)} fields, but the header has {len(header)}"
                    yield Row(start, done, error=self.error(problem, start))
                else:
                    yield Row(start, done, dict(zip(header, fields, strict=True)))

    def _check_header(self, header: list[str], line: int) -> None:
        twice = next((name for index, name in enumerate(header) if name in header[:index]), None)
        if twice is not None:
            raise self.error(f"the header names the column {twice!r} twice", line)


class TsvFile(CsvFile):
    """CSV with tabs."""

    delimiter = "\t"


class ParquetFile(_File):
    """Read in batches; a nested value comes as dicts and lists.

    Memory is bounded by a row group of `_GROUP_BYTES`, or by a batch of as many average rows. Text stays in its
    dictionary until its row is wanted: a file of a few kilobytes may repeat one long text a million times.
    """

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        with self.readable():
            try:
                with pq.ParquetFile(self.path) as file:
                    texts = _texts(file.schema)
                with pq.ParquetFile(self.path, read_dictionary=texts) as file:
                    total = max(file.metadata.num_rows, 1)
                    for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                        for index in range(batch.num_rows):
                            number += 1
                            value = {name: column[index].as_py() for name, column in _columns(batch)}
                            yield Row(number, number / total, value)
            except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
                if out_of_memory(error):
                    raise MemoryError(str(error)) from error
                raise self.error(f"not a readable Parquet file: {error}") from error


def _texts(schema: Any) -> list[str]:
    """The columns of text or bytes, by their paths."""
    columns = (schema.column(index) for index in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _columns(batch: Any) -> list[tuple[str, Any]]:
    return list(zip(batch.schema.names, batch.columns, strict=True))


def _batch_rows(metadata: Any) -> int:
    """Rows a batch, so that neither a large row group nor large rows fill memory."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    large = [group for group in groups if group.total_byte_size > _GROUP_BYTES]
    average = max((group.total_byte_size // max(group.num_rows, 1) for group in large), default=0)
    return int(min(_BATCH, max(1, MAX_ROW_BYTES // max(average, 1))))


KINDS: dict[str, type[_File]] = {
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".json": JsonFile,
    ".csv": CsvFile,
    ".tsv": TsvFile,
    ".parquet": ParquetFile,
}
