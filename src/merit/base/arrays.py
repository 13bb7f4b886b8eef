"""Arrays of numbers in NumPy's own files, `.npy`."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError


def read_array(path: Path) -> NDArray[np.float64]:
    """The float64 numbers of one `.npy` file, of any shape. Nothing is unpickled.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with path.open("rb") as file:  # np.load takes a file that begins as a zip archive does for one
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TokenError) as error:
        raise InputError(f"damaged ({error})", file=path) from None
