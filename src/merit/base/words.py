"""Numbers and lists as a person would say them: one wording for the terminal, the report and every table."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"


def count(number: float) -> str:
    """12345 → "12,345"."""
    return f"{round(number):,}"


def signed(number: float, digits: int = 3) -> str:
    """With a sign and a real minus: "+0.120", "−0.031"."""
    return ("+" if number >= 0 else "−") + f"{abs(number):.{digits}f}"


def decimal(number: float | None, digits: int = 3) -> str:
    """A figure of a table, or a dash where there is none; with a real minus."""
    return NONE if number is None else f"{number:.{digits}f}".replace("-", "−")


def plural(number: float, noun: str, many: str | None = None) -> str:
    """ "1 dataset", "12 datasets"."""
    return f"{count(number)} {noun if round(number) == 1 else many or noun + 's'}"


def series(items: Sequence[str], *, limit: int | None = None) -> str:
    """ "a, b and c"; beyond `limit` items "a, b and 7 more"."""
    if limit is not None and len(items) > limit:
        items = [*items[:limit], f"{len(items) - limit} more"]
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
