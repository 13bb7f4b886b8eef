"""File sources: JSON Lines, JSON, CSV, packed or not, Parquet and Arrow; each streamed."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import struct
import zlib
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

from merit.base.errors import InputError, out_of_memory
from merit.base.files import sha256_file
from merit.data.example import Row
from merit.data.json_stream import (
    MAX_ROW_BYTES,
    Decoder,
    JsonSyntaxError,
    RepeatedKey,
    Window,
    is_turn,
    is_utf16,
    stream_json,
    wrapper_of,
)

_BATCH = 128  # rows of a Parquet file decoded at once
_GROUP_BYTES = 256 * 2**20
_ARROW_FILE = b"ARROW1"
_LFS = b"version https://git-lfs.github.com/spec/"


class UnreadableRest(InputError):
    """Nothing after this row can be read: to skip the row would be to skip all that follow."""


_NOT_UTF8 = "not valid UTF-8; if it is Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"


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
        except (EOFError, zlib.error) as error:
            raise InputError(f"damaged: {error}", file=self.place) from error
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=self.place) from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[BufferedReader, Callable[[], float]]]:
        """The content, unpacked where the name says that it is packed; and what tells the share of it that is read.

        Raises:
            InputError: the file cannot be read or unpacked.
        """
        unpack = PACKED.get(self.path.suffix.lower())
        self.check_fetched()
        with self.readable(), self.path.open("rb") as file:
            size = max(self.path.stat().st_size, 1)
            with unpack(file) if unpack is not None else contextlib.nullcontext(file) as handle:
                yield handle, lambda: min(file.tell() / size, 1.0)

    def check_fetched(self) -> None:
        """Raises InputError where Git LFS has left a pointer in the file's place."""
        with self.readable(), self.path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise self.error("a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")

    def error(self, message: str, number: int | None = None) -> InputError:
        return InputError(message, file=self.place, line=number)

    def lines(self) -> Iterator[tuple[int, float, bytes]]:
        """Line number, share of the file read, and UTF-8 text of each line, without a byte-order mark. A file that
        begins with UTF-16's mark is read as UTF-16.

        Raises:
            InputError: a line is longer than `MAX_ROW_BYTES`.
        """
        with self.opened() as (handle, done):
            lines = _Utf16Lines(handle) if is_utf16(handle) else handle
            for number in count(1):
                try:
                    raw = lines.readline(MAX_ROW_BYTES + 1)
                except UnicodeError:
                    raise self.error("not valid UTF-16", number) from None
                if not raw:
                    return
                if len(raw) > MAX_ROW_BYTES:
                    raise self.error(f"a line is longer than {MAX_ROW_BYTES:,} bytes", number)
                yield number, done(), raw.removeprefix(BOM_UTF8) if number == 1 else raw


class _Utf16Lines:
    """Lines of a UTF-16 file in UTF-8."""

    def __init__(self, handle: BufferedReader) -> None:
        self.text = io.TextIOWrapper(handle, encoding="utf-16", newline="\n")

    def readline(self, size: int) -> bytes:
        return self.text.readline(size).encode()


def _row_of(value: Any) -> Any:
    """A bare list of turns is the row of a conversation; the dataset server of the Hub has a row within each."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and is_turn(turn) for turn in value):
        return {"messages": value}
    if isinstance(value, dict) and "row_idx" in value and isinstance(value.get("row"), dict):
        return value["row"]
    return value


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class JsonLinesFile(FileSource):
    """One JSON object per line; blank lines are skipped. A file of another JSON is read as `JsonFile` reads it."""

    def rows(self) -> Iterator[Row]:
        if self._is_whole():
            yield from JsonFile(self.path, self.place).rows()
            return
        decoder = Decoder()
        for number, done, raw in self.lines():
            if not raw.strip():
                continue
            value, problem = None, ""
            try:
                value = decoder.decode(raw.rstrip(b"\r\n").decode("utf-8"))
                problem = decoder.problem
            except json.JSONDecodeError as error:
                problem = f"not valid JSON: {error.msg} (column {error.colno})"
            except UnicodeDecodeError:
                problem = "not valid UTF-8"
            except (ValueError, RecursionError) as error:
                # A number of a million digits, or a thousand nested brackets.
                problem = f"not valid JSON: {error}"
            if problem:
                yield Row(number, done, error=self.error(problem, number))
            else:
                yield Row(number, done, _row_of(value))

    def _is_whole(self) -> bool:
        """Whether the file is JSON that does not go by lines: an array of rows (not one row that is a list of turns),
        rows under a key of one object, objects of several lines."""
        try:
            with self.opened() as (handle, _):
                window = Window(handle)
                wrapped, mark = wrapper_of(window) is not None, window.peek()
        except JsonSyntaxError:  # not UTF-8: only the lines know where
            return False
        if mark != "{":
            return mark == "[" and self._begins_with_a_row()
        lines = (raw for _, _, raw in self.lines() if raw.strip())
        try:
            alone = _is_json(next(lines))
        except InputError:  # a line that is longer than any row
            return wrapped
        after = list(islice(lines, 2))
        if not alone:  # the first line may just be broken, and the others rows
            return not (after and all(map(_is_json, after))) and self._begins_with_a_row()
        return wrapped and not after

    def _begins_with_a_row(self) -> bool:
        """Whether the JSON in the file, of any number of lines, begins with a row; false where it is broken."""
        try:
            with self.opened() as (handle, _):
                first = next((value for _, value in stream_json(handle)), None)
        except JsonSyntaxError:
            return False
        if isinstance(first, RepeatedKey):
            return True
        return isinstance(_row_of(first), dict) and not (isinstance(first, dict) and is_turn(first))


class JsonFile(FileSource):
    """An array of objects, objects one after another, or an array under a key such as `data`; parsed piece by piece.

    Memory is bounded by the largest object, which may have up to `MAX_ROW_BYTES` characters. Nothing after a syntax
    error can be read: the error is the last row.
    """

    def rows(self) -> Iterator[Row]:
        with self.opened() as (handle, done):
            try:
                for number, value in stream_json(handle):
                    if isinstance(value, RepeatedKey):
                        yield Row(number, done(), error=self.error(str(value), number))
                    else:
                        yield Row(number, done(), _row_of(value))
            except JsonSyntaxError as error:
                problem = UnreadableRest(f"not valid JSON: {error}", file=self.place, line=error.line)
                yield Row(error.line, 1.0, error=problem)


class CsvFile(FileSource):
    """A header line, then one record per row; quoted fields may hold line breaks.

    A line `sep=;` before the header names the delimiter. Where the header is one field by the file's own delimiter and
    several by another one, that is the delimiter. Where every name after the first begins with a space, spaces after a
    delimiter are no content.
    """

    delimiter = ","

    def rows(self) -> Iterator[Row]:
        line, done = 0, 0.0
        tabs: list[int] = []  # in each line of the record

        def text() -> Iterator[str]:
            nonlocal line, done
            for number, share, raw in self.lines():
                line, done = number, share
                tabs.append(raw.count(b"\t"))
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
            tabs.clear()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.error(f"not valid CSV: {error}", start) from None
            if not fields or (line == 1 and fields == ["sep=", ""]):
                continue
            if not header:
                header = fields
                if twice := next((name for index, name in enumerate(header) if name in header[:index]), None):
                    raise self.error(f"the header names the column {twice!r} twice", start)
            elif len(fields) != len(header):
                problem = f"{len(fields)} fields, but the header has {len(header)}"
                yield Row(start, done, error=self.error(problem, start))
            elif delimiter == "\t" and len(tabs) > 1 and set(tabs) == {len(header) - 1} != {0}:
                problem = (
                    f"a quote joins {len(tabs)} lines that look like rows; write a quote that is text twice, in quotes"
                )
                yield Row(start, done, error=self.error(problem, start))
            else:
                yield Row(start, done, dict(zip(header, fields, strict=True)))

    def _dialect(self) -> tuple[str, bool]:
        """The delimiter, and whether spaces follow it that are no content."""
        lines = (raw.decode("utf-8", "replace").rstrip("\r\n") for _, _, raw in self.lines() if raw.strip())
        first = next(lines, "")
        if first.startswith("sep=") and len(first) == 5:  # Excel's own word for it
            return first[4], False
        found: dict[str, list[str]] = {}
        for delimiter in (self.delimiter, ",", ";", "\t", "|"):
            with contextlib.suppress(csv.Error):
                found[delimiter] = next(csv.reader([first], delimiter=delimiter), [])
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
        self.check_fetched()
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


class ArrowFile(FileSource):
    """Arrow's own format: a stream, as `datasets` keeps a dataset on disk, or a file, which has the stream in it. A
    nested value comes as dicts and lists. The file is mapped, so that no batch fills memory; what is compressed, and
    could, is refused."""

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa

        number = 0
        self.check_fetched()
        with self.readable():
            try:
                if self.path.stat().st_size == 0:
                    raise pa.ArrowInvalid("empty")
                with pa.memory_map(str(self.path)) as file:
                    start = 8 if file.read(len(_ARROW_FILE)) == _ARROW_FILE else 0
                    file.seek(start)
                    for message in pa.ipc.MessageReader.open_stream(file):
                        if _is_compressed(message):
                            raise self.error("compressed; write it without compression, or as Parquet")
                    file.seek(start)
                    for batch in pa.ipc.open_stream(file):
                        batch.validate(full=True)  # Arrow trusts what it maps: a wrong offset would read other memory
                        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                        for index in range(batch.num_rows):
                            number += 1
                            value = {name: column[index].as_py() for name, column in columns.items()}
                            yield Row(number, min(file.tell() / max(file.size(), 1), 1.0), value)
            except (pa.ArrowException, UnicodeDecodeError, OverflowError, struct.error) as error:
                if out_of_memory(error):
                    raise MemoryError(str(error)) from error
                raise self.error(f"not a readable Arrow file: {error}") from error


def _is_compressed(message: Any) -> bool:
    """Whether the values of an Arrow message are compressed. pyarrow expands them whatever their size, and does not
    tell; the message's flatbuffer does: Message.header is a RecordBatch, or a DictionaryBatch, whose data are one."""
    content = message.metadata.to_pybytes()

    def number(form: str, at: int) -> int:
        return int(struct.unpack_from(form, content, at)[0])

    def place(table: int, field: int) -> int:
        """Where a field of the table is; 0 if it has none."""
        fields = table - number("<i", table)
        shift = number("<H", fields + 4 + 2 * field) if 4 + 2 * field < number("<H", fields) else 0
        return table + shift if shift else 0

    def inner(at: int) -> int:
        return at + number("<I", at)

    if message.type not in ("record batch", "dictionary"):
        return False
    batch = inner(place(inner(0), 2))
    if message.type == "dictionary":
        batch = inner(place(batch, 1))
    return place(batch, 3) != 0


def _unzstd(file: IO[bytes]) -> BufferedReader:
    """The standard library has had it since Python 3.14 only."""
    import pyarrow as pa

    return BufferedReader(pa.CompressedInputStream(file, "zstd"))


# How a text file may be packed → what unpacks it.
PACKED: dict[str, Callable[[IO[bytes]], BufferedReader]] = {
    ".gz": lambda file: BufferedReader(gzip.GzipFile(fileobj=file)),
    ".zst": _unzstd,
}
_TEXT: dict[str, type[FileSource]] = {
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".json": JsonFile,
    ".csv": CsvFile,
    ".tsv": TsvFile,
}
KINDS: dict[str, type[FileSource]] = {**_TEXT, ".parquet": ParquetFile, ".arrow": ArrowFile}


def kind_of(path: Path) -> type[FileSource] | None:
    """What reads the file, by its name; None for a kind that merit does not know."""
    if path.suffix.lower() in PACKED:
        return _TEXT.get(Path(path.stem).suffix.lower())
    return KINDS.get(path.suffix.lower())
