"""Short names for inputs: what tells them apart, and nothing of the machine they lay on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str]) -> list[str]:
    """A Hub id where the path is a Hub snapshot; otherwise what follows the folder that all paths share."""
    local = [path for path in paths if hub_id(path) is None]
    shared = os.path.commonpath([Path(path).parent for path in local]) if local else ""
    return [hub_id(path) or Path(os.path.relpath(path, shared)).as_posix() for path in paths]


def hub_id(path: str) -> str | None:
    """`org/name` of `…/models--org--name/snapshots/…`, the cache of the Hub's client."""
    for part in Path(path).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return None
