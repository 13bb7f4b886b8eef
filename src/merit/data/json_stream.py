"""A JSON array of objects, read piece by piece: the standard library has only a parser for whole texts."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO

from merit.data.row import MAX_ROW_BYTES, Row
from merit.errors import InputError

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
