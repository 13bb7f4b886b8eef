"""Numbers, times, lists and text from outside as a person reads them: one formatting for pages, tables, terminal."""

from __future__ import annotations

from collections.abc import Sequence

from merit.base.errors import printable

NONE = "–"
_POWERFUL = "\\`*_|<>[]"


def count(number: float) -> str:
    """12345 → "12,345"."""
    return f"{round(number):,}"


def compact(number: float) -> str:
    """1234567 → "1.23 M": three digits and a unit, for headings and axes."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return count(number)


def data_size(size: float) -> str:
    """Bytes, in powers of 1000: 2340000 → "2.34 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size) >= limit:
            scaled = size / limit
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return f"{round(size)} bytes"


def duration(seconds: float) -> str:
    """3725 → "1 h 2 min"; below ten seconds with one decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def signed(number: float, digits: int = 3) -> str:
    """With a sign and a real minus: "+0.120", "−0.031"."""
    return ("+" if number >= 0 else "−") + f"{abs(number):.{digits}f}"


def decimal(number: float | None, digits: int = 3) -> str:
    """A figure in a table, with a real minus; a dash for None."""
    return NONE if number is None else f"{number:.{digits}f}".replace("-", "−")


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """ "1.754 ± 0.031"."""
    if value is None or error is None:
        return decimal(value, digits)
    return f"{decimal(value, digits)} ± {error:.{digits}f}"


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


def code(name: str) -> str:
    """A name between backticks, which the report shows in the code font; backticks in the name are replaced."""
    return f"`{name.replace('`', 'ˋ')}`"


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, without its middle: names differ at their start or end."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def short_labels(names: Sequence[str], width: int) -> list[str]:
    """Shortened names for axes, still unique."""
    labels: list[str] = []
    for name in names:
        label = shorten(name, width)
        number = 2
        while label in labels:
            label = f"{shorten(name, width - 3)} ·{number}"
            number += 1
        labels.append(label)
    return labels


def plain(text: str) -> str:
    """Text from outside for a sentence or a table's cell, escaped so that it cannot act as Markdown or HTML."""
    return "".join(f"\\{char}" if char in _POWERFUL else char for char in printable(text))


def code_cell(text: str) -> str:
    """Text from outside as code in a table's cell, where a backslash escapes only `|`."""
    code = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{code}`"
