"""What must hold of a folder before a run works in it: it holds nothing of the user's, and no way out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from merit.errors import InputError
from merit.run.layout import RunDir


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
