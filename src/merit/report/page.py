"""From a template to one HTML file that needs nothing else: styles, script and plotly inside, all text escaped."""

from __future__ import annotations

import base64
import zlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from merit.report.safe import inline_json, prose, visible

_ASSETS = ("light.css", "dark.css", "report.css", "report.js", "follow.js")


def render_page(template: str, **context: Any) -> str:
    """The page, whole."""
    assets = {name: _asset(name) for name in _ASSETS}
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
def _asset(name: str) -> Markup:
    text = resources.files("merit.report").joinpath("assets", name).read_text(encoding="utf-8")
    return Markup(text)


@cache
def _plotly() -> Markup:
    """plotly.js, deflated and in base64: a third of its size. Half a second of work, done once a process."""
    return Markup(base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode())
