"""Bad input leaves a run directory as it was found: a new one is gone again, an old one keeps all that it had."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merit.errors import InputError
from merit.io import disk_errors, write_bytes
from merit.run.layout import RunDir


@dataclass(frozen=True)
class Before:
    """A run directory before a call writes into it.

    Attributes:
        missing: folders that are not there yet, the run's own first, then its parents.
        names: what is in the run directory.
        contents: the small files that the first stage replaces; None where there is none yet.
    """

    run: RunDir
    missing: list[Path]
    names: frozenset[str]
    contents: dict[Path, bytes | None]

    @classmethod
    def of(cls, run: RunDir, *files: Path) -> Before:
        """Looks at `run`; `files` are those to put back.

        Raises:
            InputError: the run directory cannot be looked into.
        """
        with disk_errors(run.root):
            missing = [path for path in (run.root, *run.root.parents) if not path.exists()]
            names = frozenset(path.name for path in run.root.iterdir()) if not missing else frozenset()
            return cls(run, missing, names, {path: path.read_bytes() if path.is_file() else None for path in files})

    @contextlib.contextmanager
    def restored_on_bad_input(self) -> Iterator[None]:
        """Call it with the run's lock held: what another process writes must not be taken for our own."""
        try:
            yield
        except InputError:
            for path, content in self.contents.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_bytes(path, content)
            for path in () if self.missing else list(self.run.root.iterdir()):
                if path.name not in self.names:
                    _remove(path)
            if self.missing:
                self._vanish()
            raise

    def _vanish(self) -> None:
        for path in self.run.root.iterdir():
            if path != self.run.state:
                _remove(path)
        _remove(self.run.state)
        # Only empty folders: somebody may have put something beside the run in the meantime.
        with contextlib.suppress(OSError):
            for folder in self.missing:
                folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
