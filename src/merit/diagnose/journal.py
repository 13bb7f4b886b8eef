"""What a long check has measured so far: a kill costs the piece in hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.record import Sealed


class _Pieces(Sealed):
    """The file: finished pieces by name."""

    fingerprint: str
    done: dict[str, Any]


class Journal:
    """A JSON file of finished pieces, for one fingerprint. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._path = path
        self._pieces = _Pieces(fingerprint=fingerprint, done={})
        if path is not None:
            with contextlib.suppress(InputError):  # missing or damaged: measured again
                found = _Pieces.load(path)
                if found.fingerprint == fingerprint:
                    self._pieces = found

    @property
    def fingerprint(self) -> str:
        """What the pieces depend on."""
        return self._pieces.fingerprint

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece `name`, a JSON value: as it was measured, or measured now and kept."""
        done = self._pieces.done
        if name not in done:
            done[name] = measure()
            if self._path is not None:
                self._pieces.save(self._path)
        return done[name]

    def close(self) -> None:
        """Removes the file, once the result is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
