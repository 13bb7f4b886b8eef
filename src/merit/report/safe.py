"""Text from outside, made harmless for each place it can land in: HTML, plotly's own markup, inline JSON."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from markupsafe import Markup, escape

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with control characters, direction overrides and lone surrogates spelled out, but tab and newline kept."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def plotly_text(text: str) -> str:
    """For ticks, labels and hover boxes: plotly renders a subset of HTML there, so the text is escaped once.

    Quotes stay: plotly knows no `&quot;`. `%{` would be taken for a field in a hover template, and a leading `--` for
    one of the page's colours.
    """
    escaped = html.escape(visible(text), quote=False).replace("%{", "%\u200b{").replace("\n", " ")
    return f"\u200b{escaped}" if escaped.startswith("--") else escaped


def inline_json(value: Any) -> Markup:
    """JSON that can stand in a `<script>`: pure ASCII without `<`, `>` and `&`, so no `</script>` can end it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def prose(text: str) -> Markup:
    """A sentence for the page: everything escaped, then `names between backticks` set in the code face."""
    escaped = str(escape(visible(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))
