"""Which token every number stands for, by the files of a tokenizer: without it, rows of embeddings mean nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.files import read_json

_DIGITS = 12  # a number of more is no row
_MAX_PIECE = 10_000_000  # bytes of one entry


@dataclass(frozen=True)
class TokenTable:
    """Token → number. `kind` is the file that most of them come from: two kinds may spell one token differently."""

    file: Path
    kind: str
    numbers: Mapping[str, Any]
    added: Mapping[str, Any]  # those that were added to the vocabulary

    @classmethod
    def read(cls, folder: Path) -> TokenTable | None:
        """The table of a folder; None where it holds no tokenizer."""
        readers = (
            ("tokenizer.json", _fast),
            ("vocab.json", _plain),
            ("tokenizer.model", _pieces),
            ("vocab.txt", _lines),
        )
        for name, reader in readers:
            if (folder / name).is_file():
                numbers, added = reader(folder / name)
                break
        else:
            name, numbers, added = "added_tokens.json", {}, {}
        for token, number in _beside(folder):
            added.setdefault(token, number)
        numbers, added = ({t: n for t, n in found.items() if type(n) is int} for found in (numbers, added))
        if not numbers and not added:
            return None
        return cls(folder / name, name, {**added, **numbers}, added)

    def compare(self, other: TokenTable, *, may_lack: bool = False) -> str | None:
        """Refuses a table that means other tokens; says what differs without harm, if anything does.

        Args:
            may_lack: `other` may have fewer tokens, as a model before tokens were added to it.

        Raises:
            InputError: names the token, or both tokens of one number.
        """
        alike = self.kind == other.kind
        if not alike:
            self._check_likeness(other)
        mine, theirs = (self.numbers, other.numbers) if alike else (self.added, other.added)
        by_number = {number: token for token, number in mine.items()}
        end = f"in {self.file.parent}: the rows of the embeddings mean different tokens"
        for token, number in sorted(theirs.items()):
            if mine.get(token, number) != number:
                raise InputError(f"token {token!r} is number {number}, but {mine[token]} {end}", file=other.file)
            if by_number.get(number, token) != token and token not in mine:
                raise InputError(
                    f"number {number} is token {token!r}, but {by_number[number]!r} {end}", file=other.file
                )
        one_sided = sorted(mine.keys() ^ theirs.keys()) if alike else []
        refused = [token for token in one_sided if token in theirs] if may_lack else one_sided
        if refused:
            token = refused[0]
            raise InputError(
                f"token {token!r} is number {theirs.get(token, 'none')}, but {mine.get(token, 'none')} {end}",
                file=other.file,
            )
        if one_sided:
            return f"{self.file.parent} has {len(one_sided)} tokens that {other.file.parent} lacks: {one_sided[0]!r} …"
        return None

    def _check_likeness(self, other: TokenTable) -> None:
        """Compares the tables of two kinds of file. Single tokens may be spelt apart, and all numbers shifted by one.

        Raises:
            InputError: fewer than half of the tokens agree: two tokenizers.
        """
        fewest = min(len(one.numbers) - len(one.added) for one in (self, other))
        shared = [token for token in self.numbers.keys() & other.numbers.keys() if token not in other.added]
        shifts = Counter(self.numbers[token] - other.numbers[token] for token in shared)
        agree = max(shifts.values(), default=0)
        if fewest > 0 and agree < fewest / 2:
            raise InputError(
                f"only {agree:,} of {fewest:,} tokens have the same number in {self.file}: the rows of the embeddings "
                "mean different tokens",
                file=other.file,
            )

    def beyond(self, rows: int) -> dict[str, int]:
        """The tokens whose number is no row of embeddings with so many rows."""
        return {token: number for token, number in self.numbers.items() if isinstance(number, int) and number >= rows}


_Read = tuple[dict[str, Any], dict[str, Any]]


def _fast(file: Path) -> _Read:
    value = read_json(file)
    model = value.get("model", {}) if isinstance(value, dict) else {}
    vocabulary = model.get("vocab", {}) if isinstance(model, dict) else {}
    if isinstance(vocabulary, list):  # Unigram: [token, score] by number
        vocabulary = {str(item[0]) if isinstance(item, list) and item else json.dumps(item): number
                      for number, item in enumerate(vocabulary)}  # fmt: skip
    found = {str(token): number for token, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    items = value.get("added_tokens", []) if isinstance(value, dict) else []
    added = {str(item.get("content")): item.get("id") for item in items if isinstance(item, dict)}
    return found | added, added


def _plain(file: Path) -> _Read:
    value = read_json(file)
    return ({str(token): number for token, number in value.items()} if isinstance(value, dict) else {}), {}


def _lines(file: Path) -> _Read:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {token: number for number, token in enumerate(lines)}, {}


def _pieces(file: Path) -> _Read:
    """SentencePiece: a protobuf message whose field 1, repeated, is a piece with its text in field 1."""
    content = file.read_bytes()
    pieces = [piece for number, piece in _fields(content) if number == 1]
    texts = [next((text for number, text in _fields(piece) if number == 1), b"") for piece in pieces]
    return {text.decode("utf-8", "replace"): number for number, text in enumerate(texts)}, {}


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that hold bytes; ends quietly where the message is damaged."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(content, at)
            if size > min(len(content) - at, _MAX_PIECE):
                return
            yield key >> 3, content[at : at + size]
            at += size
        else:
            return


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            break
    return value, at


def _beside(folder: Path) -> Iterator[tuple[str, Any]]:
    """Added tokens in files of their own."""
    for name in ("added_tokens.json", "tokenizer_config.json"):
        value = read_json(folder / name) if (folder / name).is_file() else {}
        if not isinstance(value, dict):
            continue
        if name == "added_tokens.json":
            yield from ((str(token), number) for token, number in value.items())
            continue
        decoder = value.get("added_tokens_decoder")
        for number, item in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(item, dict) and number.isdecimal() and len(number) < _DIGITS:
                yield str(item.get("content")), int(number)
