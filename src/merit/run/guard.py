"""What a run may touch: it replaces no file of the user's, follows no link out of its folder, and works alone."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import disk_errors, write_bytes
from merit.base.locks import claim
from merit.base.words import series
from merit.run.layout import RunDir

_LOOK_SECONDS = 0.3  # `merit status` takes the lock for a moment, to see whether it is free


def refuse_foreign(run: RunDir) -> None:
    """Refuses an output folder with other content: a configuration from anywhere may name any folder.

    Raises:
        InputError: the folder has files that a run would replace, but is not a run; names the first.
    """
    if run.state.exists() or not run.root.is_dir():
        return
    for path in run.written:
        if path.exists() or path.is_symlink():
            raise InputError(
                f"holds `{path.name}`, but is no run directory; a run would replace it: choose another folder with -o",
                file=run.root,
            )


def require_run(root: Path) -> RunDir:
    """The run in a folder.

    Raises:
        InputError: `root` is no run directory, or a link in it leads out of it.
    """
    run = RunDir(root)
    if run.config.is_file():
        refuse_links(root)
        return run
    if root.is_file():
        where = f"its run lies where its `output` says, by default in runs/{root.stem} beside it"
        hint = f"; if this is a configuration, {where}" if root.suffix in (".yaml", ".yml") else ""
        raise InputError(f"is a file, not a run directory{hint}", file=root)
    raise InputError("not a run directory: there is no config.yaml in it", file=root)


def unplanned(run: RunDir, method: str, k: int, hint: str) -> InputError:
    """The error for a branch `k` that no round plans. It names those that are planned, or gives `hint` if none is."""
    there = [str(number) for number in sorted(run.method(method).planned_branches())]
    known = f"planned are {series(there, limit=16)}" if there else hint
    return InputError(f"no branch {k} of {method!r} is planned here; {known}", file=run.root)


def refuse_links(root: Path) -> None:
    """Refuses links out of the folder. `root` itself may be a link, because the user named it.

    Raises:
        InputError: a link below `root` leads out of it or to itself, or something is neither file nor folder, so that
            reading it may never end. Names the first.
    """
    home = root.resolve()
    folders = [home] if home.is_dir() else []
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as found:  # a run at work removes some
            for entry in sorted(found, key=lambda entry: entry.name):
                if (why := _why_not(entry, home)) is not None:
                    what = "replace it by what it stands for, or choose another run directory with -o"
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
    """A run directory as it was before a call wrote into it.

    Attributes:
        missing: the folders that did not exist, the run's own first, then its parents.
        names: what the run directory held.
        contents: the small files that the first stages replace; None for one that did not exist.
    """

    run: RunDir
    missing: list[Path]
    names: frozenset[str]
    contents: dict[Path, bytes | None]

    @classmethod
    def of(cls, run: RunDir, *files: Path) -> Before:
        """Reads the state of `run`; `files` are the ones to restore.

        Raises:
            InputError: merit may not read the run directory.
        """
        with disk_errors(run.root):
            missing = [path for path in (run.root, *run.root.parents) if not path.exists()]
            names = frozenset(path.name for path in run.root.iterdir()) if not missing else frozenset()
            return cls(run, missing, names, {path: path.read_bytes() if path.is_file() else None for path in files})

    @contextlib.contextmanager
    def restored_on_bad_input(self) -> Iterator[None]:
        """Undoes what the call wrote if it ends with an InputError. Hold the run's lock, so that nobody else writes."""
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
        # Only empty folders: somebody may have put other files beside the run meanwhile.
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
    """Holds the run's lock, and writes this process's id into it.

    Raises:
        InputError: another process holds it; names the process.
    """
    with claim(run.lock, wait_seconds=_LOOK_SECONDS) as mine:
        if not mine:
            owner = run.lock.read_bytes()[:64].decode(errors="replace").strip() or "unknown"
            raise InputError(f"another process (pid {owner}) works on this run; wait for it", file=run.root)
        with disk_errors(run.lock):
            run.lock.write_text(str(os.getpid()), encoding="ascii")
        yield
