"""How much memory this machine has."""

from __future__ import annotations

import os
from pathlib import Path

_KINDS = {"MemTotal": "SC_PHYS_PAGES", "MemAvailable": "SC_AVPHYS_PAGES"}


def total_memory() -> int:
    """Bytes of memory."""
    return _memory("MemTotal")


def free_memory() -> int:
    """Bytes that a program could take now; what the system keeps as a cache counts as free."""
    return _memory("MemAvailable")


def _memory(kind: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name == kind:
            return int(rest.split()[0]) * 1024
    return os.sysconf(_KINDS[kind]) * os.sysconf("SC_PAGE_SIZE")
