"""What a long check has measured so far: a kill costs the piece in hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from merit.errors import InputError
from merit.io import read_json, write_json


class Journal:
    """A JSON file of finished pieces by name, for one fingerprint. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._path = path
        self.fingerprint = fingerprint
        self._done: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                found = read_json(path)
            except InputError:
                return  # damaged: measured again
            if isinstance(found, dict) and found.get("fingerprint") == fingerprint:
                self._done = dict(found.get("done") or {})

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece `name`, a JSON value: as it was measured, or measured now and kept."""
        if name not in self._done:
            self._done[name] = measure()
            if self._path is not None:
                write_json(self._path, {"fingerprint": self.fingerprint, "done": self._done})
        return self._done[name]

    def close(self) -> None:
        """Removes the file, once the result is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
