"""Text from outside in Markdown: it shows what it says, and has no power over the page."""

from __future__ import annotations

from merit.base.errors import printable

_POWERFUL = "\\`*_|<>[]"


def plain(text: str) -> str:
    """Text from outside in a sentence or in the cell of a table, without power over Markdown or HTML."""
    return "".join(f"\\{char}" if char in _POWERFUL else char for char in printable(text))


def code_cell(text: str) -> str:
    """Text from outside as code in the cell of a table, where a backslash escapes nothing but `|`."""
    code = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{code}`"
