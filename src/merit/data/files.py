"""File sources: JSON Lines, JSON, CSV and Parquet, each streamed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
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


class UnreadableRest(InputError):
    """Nothing after this row can be read: to skip the row would be to skip all that follow."""


_BOMS_16 = (BOM_UTF16_LE, BOM_UTF16_BE)
_NOT_UTF8 = "not valid UTF-8; if it is Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
# Keys of an object under which files keep their rows: {"version": …, "data": [{…}, …]}.
_WRAPPERS = ("data", "rows", "examples", "samples", "records", "instances", "items", "dataset", "train")


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
        """Line number, share of the file read, and UTF-8 text of each line, without a byte-order mark. A file that
        begins with UTF-16's mark is read as UTF-16.

        Raises:
            InputError: a line is longer than `MAX_ROW_BYTES`.
        """
        with self.readable(), self.path.open("rb") as handle:
            size = max(self.path.stat().st_size, 1)
            read = 0
            lines = _Utf16Lines(handle) if _is_utf16(handle) else handle
            for number in count(1):
                try:
                    raw = lines.readline(MAX_ROW_BYTES + 1)
                except UnicodeError:
                    raise self.error("not valid UTF-16", number) from None
                if not raw:
                    return
                if len(raw) > MAX_ROW_BYTES:
                    raise self.error(f"a line is longer than {MAX_ROW_BYTES:,} bytes", number)
                read += len(raw)
                yield number, min(read / size, 1.0), raw.removeprefix(BOM_UTF8) if number == 1 else raw


class _Utf16Lines:
    """Lines of a UTF-16 file in UTF-8."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.text = io.TextIOWrapper(handle, encoding="utf-16", newline="\n")

    def readline(self, size: int) -> bytes:
        return self.text.readline(size).encode()


def _is_utf16(handle: IO[bytes]) -> bool:
    start = handle.read(2)
    handle.seek(0)
    return start in _BOMS_16


def _row_of(value: Any) -> Any:
    """A bare list of turns is the row of a conversation; the dataset server of the Hub has a row within each."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and _is_turn(turn) for turn in value):
        return {"messages": value}
    if isinstance(value, dict) and "row_idx" in value and isinstance(value.get("row"), dict):
        return value["row"]
    return value


def _is_turn(value: dict[str, Any]) -> bool:
    return ("role" in value or "from" in value) and ("content" in value or "value" in value)


class JsonLinesFile(FileSource):
    """One JSON object per line; blank lines are skipped. A file that is one JSON array is read as such."""

    def rows(self) -> Iterator[Row]:
        if self._is_whole():
            yield from JsonFile(self.path, self.place).rows()
            return
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
            yield Row(number, done, _row_of(value), self.error(problem, number) if problem else None)

    def _is_whole(self) -> bool:
        """Whether the file is one JSON value: an array of rows (not one row that is a list of turns), or an object with
        rows under a key."""
        with self.readable(), self.path.open("rb") as handle:
            try:
                window = _Window(handle)
                if _wrapper(window) is not None:
                    return self._is_one_value()
                if window.peek() != "[":
                    return False
                handle.seek(0)
                _, first = next(stream_json(handle), (0, None))
            except _SyntaxError:
                return False
        return isinstance(_row_of(first), dict) and not (isinstance(first, dict) and _is_turn(first))

    def _is_one_value(self) -> bool:
        """Whether the first line is no object of its own, beside others."""
        lines = (raw for _, _, raw in self.lines() if raw.strip())
        first, second = next(lines, b""), next(lines, None)
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return True
        return second is None


class JsonFile(FileSource):
    """An array of objects, objects one after another, or an array under a key such as `data`; parsed piece by piece.

    Memory is bounded by the largest object, which may have up to `MAX_ROW_BYTES` characters. Nothing after a syntax
    error can be read: the error is the last row.
    """

    def rows(self) -> Iterator[Row]:
        with self.readable(), self.path.open("rb") as handle:
            size = max(self.path.stat().st_size, 1)
            try:
                for number, value in stream_json(handle):
                    yield Row(number, min(handle.tell() / size, 1.0), _row_of(value))
            except _SyntaxError as error:
                problem = UnreadableRest(f"not valid JSON: {error}", file=self.place, line=error.line)
                yield Row(error.line, 1.0, error=problem)


class CsvFile(FileSource):
    """A header line, then one record per row; quoted fields may hold line breaks.

    Where the header is one field by the file's own delimiter and several by another one, that is the delimiter. Where
    every name after the first begins with a space, spaces after a delimiter are no content.
    """

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
                    raise self.error(_NOT_UTF8, line) from None

        # The module's own limit of 131,072 characters per field is shorter than many answers, and is global.
        csv.field_size_limit(MAX_ROW_BYTES)
        delimiter, spaced = self._dialect()
        reader = csv.reader(text(), delimiter=delimiter, skipinitialspace=spaced, strict=True)
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

    def _dialect(self) -> tuple[str, bool]:
        """The delimiter, and whether spaces follow it that are no content."""
        raw = next((raw for _, _, raw in self.lines() if raw.strip()), b"")
        found: dict[str, list[str]] = {}
        for delimiter in (self.delimiter, ",", ";", "\t", "|"):
            with contextlib.suppress(csv.Error):
                found[delimiter] = next(csv.reader([raw.decode("utf-8", "replace")], delimiter=delimiter), [])
        own = found.get(self.delimiter, [])
        if len(own) > 1:
            delimiter = self.delimiter
        else:
            delimiter = max(found, key=lambda key: len(found[key]), default=self.delimiter)
        names = found.get(delimiter, [])
        return delimiter, len(names) > 1 and all(name.startswith(" ") for name in names[1:])


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

    An object that holds its rows under a key (`_WRAPPERS`) gives those.

    Raises:
        _SyntaxError: at the first mistake. Where the next element would start is unknown.
    """
    window = _Window(handle)
    key = ""
    if (wrapper := _wrapper(window)) is not None:
        window.take(len(wrapper[0]) - 1)
        key = wrapper[1]
    elif window.peek() != "[":
        while window.peek():
            line, value = window.value()
            yield from ((line, row) for row in (_wrapped(value) if not window.peek() else None) or [value])
        return
    yield from _elements(window)
    if key:
        _rest_of_object(window, key)
    if window.peek():
        raise _SyntaxError(f"something follows the {'object' if key else 'array'}", window.line)


# An object up to the list of rows under a key: only plain values stand before it, and its first row is no turn.
_PLAIN = r'(?:"(?:[^"\\]|\\.)*"|-?[\d.eE+-]+|true|false|null)'
_WRAPPER = re.compile(
    rf'\{{\s*(?:"(?:[^"\\]|\\.)*"\s*:\s*{_PLAIN}\s*,\s*)*"({"|".join(_WRAPPERS)})"\s*:\s*\['
    r'(?=\s*\{\s*"(?!(?:role|from|content|value)"))'
)


# What an object holds that is itself a row, whatever lists it has beside.
_ROW_KEYS = ("messages", "conversations", "prompt", "instruction", "question", "query", "input", "problem", "text")
_OWN = re.compile(rf'"(?:{"|".join(_ROW_KEYS)})"\s*:')


def _wrapper(window: _Window) -> re.Match[str] | None:
    """The beginning of an object up to its list of rows, if one starts here."""
    found = _WRAPPER.match(window.text, window.at) if window.peek() == "{" else None
    return None if found is None or _OWN.search(found[0]) else found


def _wrapped(value: Any) -> list[Any] | None:
    """The rows of an object that holds them beside other objects."""
    if not isinstance(value, dict) or not value.keys().isdisjoint(_ROW_KEYS):
        return None
    found = [value[key] for key in _WRAPPERS if isinstance(value.get(key), list) and value[key]]
    rows = found[0] if len(found) == 1 else []
    return rows if rows and all(isinstance(row, dict) and not _is_turn(row) for row in rows) else None


def _rest_of_object(window: _Window, key: str) -> None:
    """What follows the rows under `key`, which must not be rows, too."""
    while (mark := window.peek()) == ",":
        window.take(1)
        window.peek()
        line, name = window.value()
        if window.peek() != ":":
            raise _SyntaxError("expected `:` after a key", window.line)
        window.take(1)
        window.peek()
        _, value = window.value()
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise _SyntaxError(f"rows under both `{key}` and `{name}`; put each list into a file of its own", line)
    if mark != "}":
        raise _SyntaxError("the object has no end", window.line)
    window.take(1)


def _elements(window: _Window) -> Iterator[tuple[int, object]]:
    """The elements of the array that starts here."""
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


class _Window:
    """A part of the text: `text[at:]` is not yet consumed; `line` is the line of `text[at]`."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.decoder = getincrementaldecoder("utf-16" if _is_utf16(handle) else "utf-8-sig")()
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
