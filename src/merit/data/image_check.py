"""Opens many images at once, and remembers by content which were good: a second look costs a hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from merit.data.image import BadImage, ImageFacts, ImageRef, inspect
from merit.errors import InputError
from merit.logging import get_logger
from merit.machine import usable_cores

_VERSION = 1  # of what `inspect` finds
_log = get_logger(__name__)

Checked = tuple[bytes, ImageFacts]


class ImageChecker:
    """Inspects images on all cores.

    Args:
        cache: an SQLite file; None remembers nothing. One that cannot be used is done without.
    """

    def __init__(self, max_pixels: int, cache: Path | None = None) -> None:
        self._max_pixels = max_pixels
        self._cache = cache
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="merit-image")

    @cached_property
    def _memory(self) -> _Memory | None:
        return _Memory(self._cache, self._max_pixels) if self._cache is not None else None

    def check(self, refs: Sequence[ImageRef]) -> list[Checked | BadImage]:
        """Bytes and facts of each image, or what is wrong with it, in order."""
        contents = list(self._pool.map(_read, refs))
        digests = [None if isinstance(item, BadImage) else hashlib.sha256(item).hexdigest() for item in contents]
        wanted = {
            digest: item
            for digest, item in zip(digests, contents, strict=True)
            if digest is not None and isinstance(item, bytes)
        }
        known = self._memory.get(wanted) if self._memory is not None else {}
        fresh = [digest for digest in wanted if digest not in known]
        new = dict(zip(fresh, self._pool.map(self._inspect, (wanted[digest] for digest in fresh)), strict=True))
        if self._memory is not None:
            self._memory.add(new)
        known |= new
        found: list[Checked | BadImage] = []
        for ref, digest, item in zip(refs, digests, contents, strict=True):
            if digest is None or isinstance(item, BadImage):
                found.append(item if isinstance(item, BadImage) else ref.bad("cannot be read"))
                continue
            facts = known[digest]
            found.append(ref.bad(facts) if isinstance(facts, str) else (item, facts))
        return found

    def _inspect(self, content: bytes) -> ImageFacts | str:
        try:
            return inspect(content, self._max_pixels)
        except InputError as error:
            return error.message


def _read(ref: ImageRef) -> bytes | BadImage:
    try:
        return ref.read()
    except BadImage as error:
        return error


class _Memory:
    """SHA-256 → facts, or what is wrong, in a file: what is held in memory does not grow with the number of images."""

    def __init__(self, file: Path, max_pixels: int) -> None:
        self._file, self._limit = file, max_pixels
        self._usable = True
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as base:
                base.execute("create table if not exists images (key text primary key, facts text) without rowid")
        except (OSError, sqlite3.Error) as error:
            _log.info("images are not remembered between checks: %s", error)
            self._usable = False

    def get(self, digests: Iterable[str]) -> dict[str, ImageFacts | str]:
        """Those that are known."""
        found: dict[str, ImageFacts | str] = {}
        if self._usable:
            with contextlib.suppress(sqlite3.Error, ValueError, TypeError, KeyError), self._open() as base:
                for digest in digests:
                    row = base.execute("select facts from images where key = ?", (self._key(digest),)).fetchone()
                    if row is not None:
                        found[digest] = _parse(row[0])
        return found

    def add(self, facts: dict[str, ImageFacts | str]) -> None:
        """Remembers more."""
        if self._usable and facts:
            rows = [
                (self._key(digest), json.dumps(item if isinstance(item, str) else asdict(item)))
                for digest, item in facts.items()
            ]
            with contextlib.suppress(sqlite3.Error), self._open() as base:
                base.executemany("insert or replace into images values (?, ?)", rows)

    def _key(self, digest: str) -> str:
        return f"{_VERSION}:{self._limit}:{digest}"

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self._file, timeout=10)
        try:
            with base:
                base.execute("pragma synchronous = off")  # losing it costs a second look, nothing more
                yield base
        finally:
            base.close()


def _parse(text: str) -> ImageFacts | str:
    value = json.loads(text)
    if isinstance(value, str):
        return value
    return ImageFacts(int(value["width"]), int(value["height"]), str(value["kind"]), tuple(value["notes"]))
