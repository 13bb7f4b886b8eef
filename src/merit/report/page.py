"""From sections to one HTML file that needs nothing else: styles, script and plotly inside, all text escaped."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs


@dataclass(frozen=True)
class Section:
    """One chapter of the story. `template` is below templates/sections."""

    id: str
    title: str
    template: str
    context: Mapping[str, Any] = field(default_factory=dict)


def missing(id: str, title: str, why: str) -> Section:
    """The chapter of a stage that has not run."""
    return Section(id, title, "missing", {"why": why})


_ASSETS = ("light.css", "dark.css", "report.css", "report.js", "follow.js")


def render_page(template: str, **context: Any) -> str:
    """The page, whole."""
    assets = {name: asset(name) for name in _ASSETS}
    return _environment().get_template(template).render(**context, assets=assets, plotly=_plotly())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("merit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every plain string on the page, wherever it comes from, is first rid of what could hide or reorder text.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["prose"] = prose
    environment.filters["inline_json"] = inline_json
    return environment


@cache
def asset(name: str) -> Markup:
    """A file of the folder `assets`, as it is."""
    text = resources.files("merit.report").joinpath("assets", name).read_text(encoding="utf-8")
    return Markup(text)


@cache
def _plotly() -> Markup:
    """plotly.js, deflated and in base64: a third of its size. Half a second of work, done once a process."""
    return Markup(base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode())


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
