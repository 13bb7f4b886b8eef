"""The page's colours outside a browser: a figure with every `--name` replaced, as the page's script does it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from merit.report.figure import Figure
from merit.report.page import plotly_text

Theme = Literal["light", "dark"]
_FONT = "Open Sans, DejaVu Sans, Helvetica, Arial, sans-serif"


@cache
def palette(theme: Theme) -> Mapping[str, str]:
    """`--accent` → its value."""
    text = resources.files("merit.report").joinpath("assets", f"{theme}.css").read_text(encoding="utf-8")
    return dict(re.findall(r"(--[a-z0-9-]+):\s*([^;]+);", text))


def painted(figure: Figure, colours: Mapping[str, str]) -> dict[str, Any]:
    """The figure as plotly takes it: its first view, its title inside, on paper of its own."""
    spec: dict[str, Any] = _resolved(figure.spec, colours)
    layout = spec["layout"]
    traces = [trace for trace in spec["data"] if trace.get("meta", {}).get("view", 0) == 0]
    margin = {"l": 16, "r": 24, "t": 16, "b": 16} | layout.get("margin", {})
    legend = layout.get("showlegend", False) and layout.get("legend", {}).get("y", 0) > 1
    named = bool(layout.get("annotations"))  # names above the plot need room below the title
    themed = {
        **layout,
        "title": {
            "text": plotly_text(figure.title),
            "x": 0,
            "xref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 16, "t": 14},
        },
        "paper_bgcolor": colours["--surface"],
        "plot_bgcolor": colours["--surface"],
        "showlegend": layout.get("showlegend", False),
        "font": {"family": _FONT, "size": 12, "color": colours["--ink"]},
        "margin": margin | {"t": 80 if legend or named else 56},
    }
    for axis in [key for key in ("xaxis", "yaxis", "yaxis2") if key in layout or key != "yaxis2"]:
        themed[axis] = {
            "gridcolor": colours["--line"],
            "zerolinecolor": colours["--faint"],
            "linecolor": colours["--line"],
            "automargin": True,
            "zeroline": False,
            **layout.get(axis, {}),
        }
    return {"data": traces, "layout": themed}


def _resolved(value: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return colours.get(value, value) if value.startswith("--") else value
    if isinstance(value, list | tuple):
        return [_resolved(item, colours) for item in value]
    if isinstance(value, Mapping):
        return {key: _resolved(item, colours) for key, item in value.items()}
    return value
