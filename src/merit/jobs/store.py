"""A place that every machine can reach (S3, GCS, SFTP, a folder) through fsspec, for machines that share no disk.

Networks fail, so every call is retried, each time after a longer wait. Files are uploaded one by one, and the marker of
what they belong to last: what has its marker is complete.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from merit.base.errors import InputError, StageError, first_line
from merit.base.files import open_url, url_errors

_TRIES = 6
_FIRST_SECONDS = 0.5  # doubled each time: half a minute in all
_log = logging.getLogger(__name__)
T = TypeVar("T")


class GoneFromHere(FileNotFoundError):
    """A file that was to be uploaded is not on this machine (any more). Another try would not help."""


class Store:
    """Files below one URL, named relative to it, with forward slashes. It counts the bytes that it moves."""

    def __init__(self, url: str) -> None:
        """Raises InputError: not a URL that fsspec knows, or its driver (s3fs, gcsfs, …) is not installed."""
        self._files, root = open_url(url, field="launch.store")
        self.url = url.rstrip("/")
        self._root = PurePosixPath(root)
        self._lock = threading.Lock()
        self.sent = self.received = 0

    def put(self, file: Path, name: str) -> None:
        """Copies `file` into the store as `name`.

        Raises:
            GoneFromHere: there is no such file (any more).
            StageError: the store cannot be reached in several tries.
        """
        target = self._path(name)
        size = self._again(f"put {name}", lambda: self._put(file, target))
        with self._lock:
            self.sent += size

    def get(self, name: str, file: Path) -> bool:
        """Copies `name` to `file`, under a temporary name first; False if it is not there.

        Raises:
            StageError: the store cannot be reached in several tries.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.get.part")  # two jobs of one machine may fetch the same file
        try:
            found = self._again(f"get {name}", lambda: self._get(self._path(name), part))
            if found:
                with self._lock:
                    self.received += part.stat().st_size
                part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        return found

    def names(self, below: str) -> list[str]:
        """The names of all files below a folder.

        Raises:
            StageError: the store cannot be reached in several tries.
        """
        return self._again(f"list {below}", lambda: self._names(self._path(below)))

    def remove(self, below: str) -> None:
        """Removes a folder, if it is there.

        Raises:
            StageError: the store cannot be reached in several tries.
        """
        self._again(f"remove {below}", lambda: self._remove(self._path(below)))

    def _put(self, file: Path, target: str) -> int:
        try:
            size = file.stat().st_size
            self._files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            self._files.put_file(str(file), target)
        except FileNotFoundError as error:
            if file.is_file():
                raise
            raise GoneFromHere(error.errno, error.strerror, str(file)) from None
        return size

    def _get(self, source: str, part: Path) -> bool:
        try:
            self._files.get_file(source, str(part))
        except FileNotFoundError:
            return False
        return True

    def _names(self, folder: str) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.find(folder)
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(path).relative_to(self._root).as_posix() for path in found)

    def _remove(self, folder: str) -> None:
        try:
            self._files.rm(folder, recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/"):
            raise InputError(f"the path {name!r} leaves the store", file=self.url)
        return str(self._root.joinpath(*parts))

    def _again(self, what: str, call: Callable[[], T]) -> T:
        wait = _FIRST_SECONDS
        for left in range(_TRIES - 1, -1, -1):
            try:
                return call()
            except GoneFromHere:
                raise
            except PermissionError as error:
                raise InputError(f"the store refuses to {what}: {error}", field="launch.store") from None
            except url_errors() as error:
                if not left:
                    raise StageError(f"the store {self.url} cannot {what}: {error}") from error
                _log.warning("the store cannot %s (%s); merit tries again in %g s", what, first_line(error), wait)
                time.sleep(wait)
                wait *= 2
        raise StageError(f"the store {self.url} cannot {what}")
