"""File sources: JSON Lines, JSON, CSV and Parquet, each streamed."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from merit.base.errors import InputError, out_of_memory
from merit.base.files import sha256_file
from merit.data.example import Row

MAX_ROW_BYTES = 64 * 2**20  # one row larger than this is a mistake, and would be the one thing that fills memory
_BATCH = 128  # rows of a Parquet file decoded at once
_GROUP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class FileSource(ABC):
    """A file as a `Source`. The names of the subclasses are part of fingerprints."""

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

    def lines(self) -> Iterator[tuple[int, float, bytes]]:
        """Line number, share of the file read, and text of each line, without a byte-order mark.

        Raises:
            InputError: a line is longer than `MAX_ROW_BYTES`.
        """
        with self.readable(), self.path.open("rb") as handle:
            size = max(self.path.stat().st_size, 1)
            read = 0
            for number in count(1):
                raw = handle.readline(MAX_ROW_BYTES + 1)
                if not raw:
                    return
                if len(raw) > MAX_ROW_BYTES:
                    raise self.error(f"a line is longer than {MAX_ROW_BYTES:,} bytes", number)
                read += len(raw)
                yield number, min(read / size, 1.0), raw.removeprefix(BOM_UTF8) if number == 1 else raw


class JsonLinesFile(FileSource):
    """One JSON object per line; blank lines are skipped."""

    def rows(self) -> Iterator[Row]:
        for number, done, raw in self.lines():
            if not raw.strip():
                continue
            value, problem = None, ""
            try:
                value = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
            except json.JSONDecodeError as error:
                problem = f"not valid JSON: {error.msg} (column {error.colno})"
            except UnicodeDecodeError:
                problem = "not valid UTF-8"
            except (ValueError, RecursionError) as error:
                # A number of a million digits, or a thousand nested brackets.
                problem = f"not valid JSON: {error}"
            yield Row(number, done, value, self.error(problem, number) if problem else None)


class JsonFile(FileSource):
    """An array of objects (or objects one after another), parsed piece by piece.

    Memory is bounded by the largest object, which may have up to `MAX_ROW_BYTES` characters. Nothing after a syntax
    error can be read: the error is the last row.
    """

    def rows(self) -> Iterator[Row]:
        with self.readable(), self.path.open("rb") as handle:
            size = max(self.path.stat().st_size, 1)
            try:
                for number, value in stream_json(handle):
                    yield Row(number, min(handle.tell() / size, 1.0), value)
            except _SyntaxError as error:
                yield Row(error.line, 1.0, error=self.error(f"not valid JSON: {error}", error.line))


class CsvFile(FileSource):
    """A header line, then one record per row; quoted fields may hold line breaks."""

    delimiter = ","

    def rows(self) -> Iterator[Row]:
        line, done = 0, 0.0

        def text() -> Iterator[str]:
            nonlocal line, done
            for number, share, raw in self.lines():
                line, done = number, share
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError:
                    raise self.error("not valid UTF-8", line) from None

        # The module's own limit of 131,072 characters per field is shorter than many answers, and is global.
        csv.field_size_limit(MAX_ROW_BYTES)
        reader = csv.reader(text(), delimiter=self.delimiter, strict=True)
        header: list[str] = []
        while True:
            start = line + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.error(f"not valid CSV: {error}", start) from None
            if not fields:
                continue
            if not header:
                header = fields
                if twice := next((name for index, name in enumerate(header) if name in header[:index]), None):
                    raise self.error(f"the header names the column {twice!r} twice", start)
            elif len(fields) != len(header):
                problem = f"{len(fields)} fields, but the header has {len(header)}"
                yield Row(start, done, error=self.error(problem, start))
            else:
                yield Row(start, done, dict(zip(header, fields, strict=True)))


class TsvFile(CsvFile):
    """CSV with tabs."""

    delimiter = "\t"


class ParquetFile(FileSource):
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
                        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                        for index in range(batch.num_rows):
                            number += 1
                            value = {name: column[index].as_py() for name, column in columns.items()}
                            yield Row(number, number / total, value)
            except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
                if out_of_memory(error):
                    raise MemoryError(str(error)) from error
                raise self.error(f"not a readable Parquet file: {error}") from error


def _texts(schema: Any) -> list[str]:
    """The columns of text or bytes, by their paths."""
    columns = (schema.column(index) for index in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _batch_rows(metadata: Any) -> int:
    """Rows a batch, so that neither a large row group nor large rows fill memory."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    large = [group for group in groups if group.total_byte_size > _GROUP_BYTES]
    average = max((group.total_byte_size // max(group.num_rows, 1) for group in large), default=0)
    return int(min(_BATCH, max(1, MAX_ROW_BYTES // max(average, 1))))


KINDS: dict[str, type[FileSource]] = {
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".json": JsonFile,
    ".csv": CsvFile,
    ".tsv": TsvFile,
    ".parquet": ParquetFile,
}


_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class _SyntaxError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def stream_json(handle: IO[bytes]) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array, or objects that follow one another; each with the line in which it starts.

    Raises:
        _SyntaxError: at the first mistake. Where the next element would start is unknown.
    """
    window = _Window(handle)
    if window.peek() != "[":
        while window.peek():
            yield window.value()
        return
    window.take(1)
    more = window.peek() != "]"
    while more:
        window.peek()
        yield window.value()
        mark = window.peek()
        if mark not in ("]", ","):
            problem = "expected `,` or `]` after an element" if mark else "the array has no end"
            raise _SyntaxError(problem, window.line)
        if more := mark == ",":
            window.take(1)
    window.take(1)
    if window.peek():
        raise _SyntaxError("something follows the array", window.line)


class _Window:
    """A part of the text: `text[at:]` is not yet consumed; `line` is the line of `text[at]`."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.decoder = getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.at = 0
        self.line = 1
        self.ended = False

    def more(self, size: int) -> None:
        """Reads `size` more bytes, and forgets what is consumed."""
        raw = self.handle.read(size)
        self.ended = not raw
        try:
            new = self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at) + raw[: error.start].count(b"\n")
            raise _SyntaxError("not valid UTF-8", line) from None
        self.text, self.at = self.text[self.at :] + new, 0

    def take(self, size: int) -> None:
        """Consumes `size` characters."""
        self.line += self.text.count("\n", self.at, self.at + size)
        self.at += size

    def peek(self) -> str:
        """The next character that is not a space, or "" at the end."""
        while True:
            spaces = _SPACE.match(self.text, self.at)
            self.take(len(spaces[0]) if spaces else 0)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(_CHUNK)

    def value(self) -> tuple[int, object]:
        """Parses and consumes the value that starts here, reading on for as long as it may be incomplete."""
        first, wanted = self.line, _CHUNK
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
                # `12` at the very end of the window may be the beginning of `123`.
                if end < len(self.text) or self.ended:
                    self.take(end - self.at)
                    return first, value
                problem, line = "incomplete", first
            except json.JSONDecodeError as error:
                problem, line = error.msg, first + self.text.count("\n", self.at, error.pos)
            except (ValueError, RecursionError) as error:
                raise _SyntaxError(str(error), first) from None
            if self.ended:
                raise _SyntaxError(problem, line)
            if len(self.text) - self.at > MAX_ROW_BYTES:
                raise _SyntaxError(f"{problem}, or an element longer than {MAX_ROW_BYTES:,} characters", line)
            self.more(wanted)
            wanted *= 2  # parsed again from its start each time: doubling keeps the total linear
