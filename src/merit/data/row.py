"""A row of a source, and what every kind of source offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from merit.base.errors import InputError

MAX_ROW_BYTES = 64 * 2**20  # one row larger than this is a mistake, and would be the one thing that fills memory


@dataclass(frozen=True)
class Row:
    """One row as the source holds it.

    `number` is the 1-based line of a text file and the 1-based row of any other source. `done` is the share of the
    source, 0 to 1, that was read up to here. A row that cannot be read has an `error` and no `value`: the caller may
    stop, as a run does, or go on, as `merit check` does.
    """

    number: int
    done: float
    value: Any = None
    error: InputError | None = None


class Source(Protocol):
    """What every kind of source offers.

    `place` is what error messages call it. `scores` says whether its rows carry what an own scorer needs.
    """

    @property
    def place(self) -> str: ...

    @property
    def scores(self) -> bool: ...

    def rows(self) -> Iterator[Row]:
        """Streams all rows, from the start at every call.

        Raises:
            InputError: the source cannot be opened, or its rest cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the rows change. For a file it is the SHA-256 of the bytes: modification times differ between
        machines and after a checkout, and hashing is much cheaper than tokenizing."""
        ...
