"""Work with Ray in a process of its own.

Ray leaves threads behind that read this process's environment for ever. A later test that sets a variable moves the
environment from under them, and the test process ends with a segmentation fault.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Calls a function of a module in a new Python; what it raises is raised here, with its traceback."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()
