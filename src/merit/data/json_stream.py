"""JSON read piece by piece: an array, objects one after another, or rows under a key of an object."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

MAX_ROW_BYTES = 64 * 2**20  # one row larger than this is a mistake, and would be the one thing that fills memory
_BOMS_16 = (BOM_UTF16_LE, BOM_UTF16_BE)
# Keys of an object under which files keep their rows: {"version": …, "data": [{…}, …]}.
_WRAPPERS = ("data", "rows", "examples", "samples", "records", "instances", "items", "dataset", "train")
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonSyntaxError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class RepeatedKey(str):
    """Stands in for a value in which an object has a key twice: says which. Parsers drop all but the last."""


class Decoder(json.JSONDecoder):
    """Parses one value at a time; `problem` says which key an object in it has twice, if any has."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.problem = ""

    def decode(self, text: str) -> Any:  # type: ignore[override]
        self.problem = ""
        return super().decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            self.problem = f"an object has the key {twice[:40]!r} twice"
        return found


def stream_json(handle: BufferedReader) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array, or objects that follow one another; each with the line in which it starts.

    An object that holds its rows under a key (`_WRAPPERS`) gives those. A `RepeatedKey` stands for an element in which
    a key is repeated.

    Raises:
        JsonSyntaxError: at the first mistake. Where the next element would start is unknown.
    """
    window = Window(handle)
    key = ""
    if (wrapper := wrapper_of(window)) is not None:
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
        raise JsonSyntaxError(f"something follows the {'object' if key else 'array'}", window.line)


# An object up to the list of rows under a key: only plain values stand before it, and its first row is no turn.
_PLAIN = r'(?:"(?:[^"\\]|\\.)*"|-?[\d.eE+-]+|true|false|null)'
_WRAPPER = re.compile(
    rf'\{{\s*(?:"(?:[^"\\]|\\.)*"\s*:\s*{_PLAIN}\s*,\s*)*"({"|".join(_WRAPPERS)})"\s*:\s*\['
    r'(?=\s*\{\s*"(?!(?:role|from|content|value)"))'
)


# What an object holds that is itself a row, whatever lists it has beside.
_ROW_KEYS = ("messages", "conversations", "prompt", "instruction", "question", "query", "input", "problem", "text")
_OWN = re.compile(rf'"(?:{"|".join(_ROW_KEYS)})"\s*:')


def wrapper_of(window: Window) -> re.Match[str] | None:
    """The beginning of an object up to its list of rows, if one starts here."""
    found = _WRAPPER.match(window.text, window.at) if window.peek() == "{" else None
    return None if found is None or _OWN.search(found[0]) else found


def _wrapped(value: Any) -> list[Any] | None:
    """The rows of an object that holds them beside other objects."""
    if not isinstance(value, dict) or not value.keys().isdisjoint(_ROW_KEYS):
        return None
    found = [value[key] for key in _WRAPPERS if isinstance(value.get(key), list) and value[key]]
    rows = found[0] if len(found) == 1 else []
    return rows if rows and all(isinstance(row, dict) and not is_turn(row) for row in rows) else None


def _rest_of_object(window: Window, key: str) -> None:
    """What follows the rows under `key`, which must not be rows, too."""
    while (mark := window.peek()) == ",":
        window.take(1)
        window.peek()
        line, name = window.value()
        if window.peek() != ":":
            raise JsonSyntaxError("expected `:` after a key", window.line)
        window.take(1)
        window.peek()
        _, value = window.value()
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise JsonSyntaxError(f"rows under both `{key}` and `{name}`; put each list into a file of its own", line)
    if mark != "}":
        raise JsonSyntaxError("the object has no end", window.line)
    window.take(1)


def _elements(window: Window) -> Iterator[tuple[int, object]]:
    """The elements of the array that starts here."""
    window.take(1)
    more = window.peek() != "]"
    while more:
        window.peek()
        yield window.value()
        mark = window.peek()
        if mark not in ("]", ","):
            problem = "expected `,` or `]` after an element" if mark else "the array has no end"
            raise JsonSyntaxError(problem, window.line)
        if more := mark == ",":
            window.take(1)
    window.take(1)


def is_utf16(handle: BufferedReader) -> bool:
    """Whether the text that starts here has UTF-16's mark. Consumes nothing."""
    return handle.peek(2)[:2] in _BOMS_16


def is_turn(value: dict[str, Any]) -> bool:
    return ("role" in value or "from" in value) and ("content" in value or "value" in value)


class Window:
    """A part of the text: `text[at:]` is not yet consumed; `line` is the line of `text[at]`."""

    def __init__(self, handle: BufferedReader) -> None:
        self.handle = handle
        self.decoder = getincrementaldecoder("utf-16" if is_utf16(handle) else "utf-8-sig")()
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
            raise JsonSyntaxError("not valid UTF-8", line) from None
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
        first, wanted, decoder = self.line, _CHUNK, Decoder()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
                # `12` at the very end of the window may be the beginning of `123`.
                if end < len(self.text) or self.ended:
                    self.take(end - self.at)
                    return first, RepeatedKey(decoder.problem) if decoder.problem else value
                problem, line = "incomplete", first
            except json.JSONDecodeError as error:
                problem, line = error.msg, first + self.text.count("\n", self.at, error.pos)
            except (ValueError, RecursionError) as error:
                raise JsonSyntaxError(str(error), first) from None
            if self.ended:
                raise JsonSyntaxError(problem, line)
            if len(self.text) - self.at > MAX_ROW_BYTES:
                raise JsonSyntaxError(f"{problem}, or an element longer than {MAX_ROW_BYTES:,} characters", line)
            self.more(wanted)
            wanted *= 2  # parsed again from its start each time: doubling keeps the total linear
