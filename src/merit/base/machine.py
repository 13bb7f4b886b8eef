"""How much memory this machine has, and how many of its cores are ours.

psutil is imported where it is asked: `merit --help` does without it.
"""

from __future__ import annotations

import os


def total_memory() -> int:
    """Bytes of memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Bytes that a program could take now; what the system keeps as a cache counts as free."""
    import psutil

    return int(psutil.virtual_memory().available)


def usable_cores() -> int:
    """Cores that this process may use: a scheduler or `taskset` may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
