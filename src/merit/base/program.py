"""This program as a command: how jobs and workers are started."""

from __future__ import annotations

import sys

# `-m` alone would look for modules in the current folder first, which may hold a stranger's `torch.py` beside the data.
PYTHON = (sys.executable, "-P")


def merit_command(*arguments: str) -> list[str]:
    """`merit ARGUMENTS`, whatever is on the PATH, with this interpreter."""
    return [*PYTHON, "-m", "merit", *arguments]
