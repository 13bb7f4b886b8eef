"""File sources: JSON Lines, JSON, CSV and Parquet, each streamed."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from merit.base.errors import InputError, out_of_memory
from merit.base.files import sha256_file
from merit.data.example import Row

MAX_ROW_BYTES = 64 * 2**20  # one row larger than this is a mistake, and would be the one thing that fills memory
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


_CHUNK = 1 << 16
_SPACE = " \t\r\n"


def stream_json(handle: IO[bytes], *, place: str, size: int) -> Iterator[Row]:
    """The elements of a JSON array, or of objects that follow one another; each with the line it starts in.

    The first syntax error is the last row: where the next element would start is unknown.
    """
    buffer = _Buffer(handle)
    try:
        yield from _elements(buffer, size)
    except _SyntaxError as error:
        yield Row(error.line, 1.0, error=InputError(f"not valid JSON: {error}", file=place, line=error.line))


class _SyntaxError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Buffer:
    """A window on the text: `text[at:]` is not yet consumed; `line` is the line of `text[at]`."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.line = 1
        self.ended = False

    def more(self, count: int) -> None:
        """Reads `count` more bytes, and forgets what is consumed."""
        raw = self.handle.read(count)
        self.ended = not raw
        try:
            new = self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at) + raw[: error.start].count(b"\n")
            raise _SyntaxError("not valid UTF-8", line) from None
        self.text, self.at = self.text[self.at :] + new, 0

    def skip(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def peek(self) -> str:
        """The next character that is not a space, or "" at the end."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in _SPACE:
                end += 1
            self.skip(end)
            if end < len(self.text):
                return self.text[end]
            if self.ended:
                return ""
            self.more(_CHUNK)

    def value(self) -> object:
        """Parses and consumes the value that starts here, reading on for as long as it may be incomplete."""
        wanted = _CHUNK
        while True:
            problem: str
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                problem, line = error.msg, self.line + self.text.count("\n", self.at, error.pos)
            except (ValueError, RecursionError) as error:
                raise _SyntaxError(str(error), self.line) from None
            else:
                # `12` at the very end of the window may be the beginning of `123`.
                if end < len(self.text) or self.ended:
                    self.skip(end)
                    return value
                problem, line = "incomplete", self.line
            if self.ended:
                raise _SyntaxError(problem, line)
            if len(self.text) - self.at > MAX_ROW_BYTES:
                raise _SyntaxError(f"{problem}, or an element longer than {MAX_ROW_BYTES:,} characters", line)
            self.more(wanted)
            wanted *= 2  # parsed again from its start each time: doubling keeps the total linear


def _elements(buffer: _Buffer, size: int) -> Iterator[Row]:
    def row() -> Row:
        line = buffer.line
        value = buffer.value()
        return Row(line, min(buffer.handle.tell() / size, 1.0), value)

    first = buffer.peek()
    if first == "":
        return
    if first != "[":
        while buffer.peek():
            yield row()
        return
    buffer.skip(buffer.at + 1)
    if buffer.peek() != "]":
        while True:
            buffer.peek()
            yield row()
            mark = buffer.peek()
            if mark == "]":
                break
            if mark != ",":
                raise _SyntaxError(
                    "expected `,` or `]` after an element" if mark else "the array has no end", buffer.line
                )
            buffer.skip(buffer.at + 1)
    buffer.skip(buffer.at + 1)
    if buffer.peek():
        raise _SyntaxError("something follows the array", buffer.line)
