"""What must hold of a folder before a run works in it: it holds nothing of the user's, and no way out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import disk_errors, write_bytes
from merit.run.layout import RunDir

_LOOK_SECONDS = 0.3  # `merit status` holds it for a moment, to see whether it is free


def refuse_foreign(run: RunDir) -> None:
    """A configuration may have come from anywhere, and names its output: what is there already must be a run.

    Raises:
        InputError: the folder has files of a run's names, but is none; names the first.
    """
    if run.state.exists() or not run.root.is_dir():
        return
    for path in run.written:
        if path.exists() or path.is_symlink():
            raise InputError(
                f"holds `{path.name}`, but is no run directory; a run would replace it: name another one with -o",
                file=run.root,
            )


def refuse_links(root: Path) -> None:
    """Looks through the folder without following anything. `root` may itself be a link: the user named it.

    Raises:
        InputError: a link below `root` leads out of it, or round in a circle; something is neither file nor folder, and
            reading it may never end. Names the first.
    """
    home = root.resolve()
    folders = [home] if home.is_dir() else []
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as found:  # a run at work removes some
            for entry in sorted(found, key=lambda entry: entry.name):
                if (why := _why_not(entry, home)) is not None:
                    what = "put what it means in its place, or name another run directory with -o"
                    raise InputError(f"{why}; {what}", file=root / Path(entry).relative_to(home))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry))


def _why_not(entry: os.DirEntry[str], home: Path) -> str | None:
    if entry.is_symlink():
        stays = _stays(Path(entry), home)
        return None if stays else f"a link in the run directory leads out of it, to {_target(Path(entry))}"
    if entry.is_dir() or entry.is_file() or not Path(entry).exists():
        return None
    return "neither a file nor a folder"


def _stays(path: Path, home: Path) -> bool:
    try:
        return path.resolve(strict=False).is_relative_to(home)
    except (OSError, RuntimeError):  # a circle
        return False


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return "nowhere"


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


@contextlib.contextmanager
def run_lock(run: RunDir) -> Iterator[None]:
    """Holds the run's lock; the kernel releases it when the process dies, however it dies.

    Raises:
        InputError: another process holds it; names the process.
    """
    with disk_errors(run.lock):
        run.state.mkdir(parents=True, exist_ok=True)
        handle = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not (_taken(handle) or _taken(handle, after=_LOOK_SECONDS)):
            owner = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
            raise InputError(f"another process (pid {owner}) works on this run; wait for it", file=run.root)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _taken(handle: int, *, after: float = 0.0) -> bool:
    time.sleep(after)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
