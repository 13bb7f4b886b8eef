"""Sources: where rows come from. Every kind streams, so memory does not grow with a file's size."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from merit.config.mixture import DatasetConfig
from merit.data import files, gym, hub, visual
from merit.data.row import Row, Source
from merit.errors import InputError

__all__ = ["Row", "Source", "open_source"]


def open_source(config: DatasetConfig, base: Path, at: str) -> Source:
    """The source of the dataset at field `at`; relative paths are taken from `base`, the configuration's folder.

    Nothing large is read yet, but what can be known now (a missing file, an unknown family) is checked.

    Raises:
        InputError: no such file, an unknown kind of file, an unknown reasoning_gym family or option.
    """
    field = f"{at}.path"
    if config.path.startswith(gym.PREFIX):
        return gym.GymSource.open(config, at)
    if config.path.startswith(visual.PREFIX):
        return visual.VisualSource.open(config, at)
    if config.options:
        raise InputError(f"only a `{gym.PREFIX}NAME` source takes options", field=f"{at}.options")
    # Only `~/`: a file may well be called `~x.jsonl`.
    path = base / (Path(config.path).expanduser() if config.path.startswith("~/") else config.path)
    kind = files.KINDS.get(path.suffix.lower())
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        # Too long a name, a NUL in it, a folder that may not be searched.
        message = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise InputError(message, file=config.path[:200], field=field) from None
    if path.is_file():
        if kind is None:
            raise InputError(
                f"unknown kind of file; use one of {', '.join(files.KINDS)}", file=config.path, field=field
            )
        return kind(path=path, place=config.path)
    if path.is_dir():
        raise InputError("this is a folder; name one file in it", file=config.path, field=field)
    # `data/train`, where there is a folder `data`, is a file that is missing, not a dataset of the user `data`.
    local = kind is not None or config.path.startswith(".") or ("/" in config.path and path.parent.is_dir())
    if not local and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", config.path):
        return hub.HubSource(place=config.path, subset=config.subset, split=config.split)
    raise InputError(f"no such file{_nearest_file(path)}", file=config.path, field=field)


def _nearest_file(path: Path) -> str:
    try:
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1)
    except OSError:
        return ""
    return f"; did you mean `{near[0]}`?" if near else ""
