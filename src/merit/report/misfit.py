"""Files of a run that are each what they should be, and yet do not fit together: of another run, or made up."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from merit.base.errors import InputError, first_line

_MISFITS = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError)


@contextlib.contextmanager
def refusing_misfits(root: Path) -> Iterator[None]:
    """What drawing stumbles over becomes one line that says where. Lists of unlike lengths are known only then.

    Raises:
        InputError: the run's files do not fit together.
    """
    try:
        yield
    except _MISFITS as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        raise InputError(f"its files do not fit together ({where}: {first_line(error)})", file=root) from error
