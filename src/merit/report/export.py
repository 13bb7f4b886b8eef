"""Every figure of a report as files: its numbers as CSV, and a picture as PNG where the browser for it is there."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from merit.base.files import write_bytes, write_text
from merit.report.build import chapters
from merit.report.drawing import DataTable, Figure
from merit.report.evidence import read_evidence
from merit.report.page import Section, asset, plotly_text

WIDTH, SCALE = 960, 2  # CSS pixels, and how many pixels of the picture each gets
_NUMBER = re.compile(r"[+-]?[\d.,]+( ± [\d.]+)?%?")


@dataclass(frozen=True)
class Exported:
    """What was written, and why there are no pictures where there are none."""

    files: list[Path]
    without_pictures: str | None


def export_figures(root: Path, folder: Path, *, theme: Theme = "light") -> Exported:
    """Writes FOLDER/ID.csv and FOLDER/ID.png for every figure of the run's report.

    Raises:
        InputError: a file of the run makes no sense, or the folder may not be written.
    """
    figures = figures_of(chapters(read_evidence(root)))
    files = []
    for figure in figures:
        path = folder / f"{figure.id}.csv"
        write_text(path, to_csv(figure.table))
        files.append(path)
    pictures, problem = _draw(figures, folder, theme)
    return Exported(sorted([*files, *pictures]), problem)


def figures_of(sections: Iterable[Section]) -> list[Figure]:
    """In the order of the page."""
    return [figure for section in sections for figure in _inside(section.context)]


def to_csv(table: DataTable) -> str:
    """As the page's own button saves it: plain minus signs, and nothing that a spreadsheet would take for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for row in (table.header, *table.rows):
        writer.writerow([_cell(cell) for cell in row])
    return text.getvalue()


def _cell(text: str) -> str:
    plain = text.replace("−", "-")
    formula = plain[:1] in tuple("=+-@\t\r") and not _NUMBER.fullmatch(plain)
    return f"'{plain}" if formula else plain


def _inside(value: Any) -> Iterator[Figure]:
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item)


def _draw(figures: list[Figure], folder: Path, theme: Theme) -> tuple[list[Path], str | None]:
    try:
        from kaleido import Kaleido, PageGenerator
        from kaleido.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError:
        return [], "no pictures: pip install 'merit-tuning[figures]'"
    colours = palette(theme)
    paths = []

    async def draw() -> None:
        # One browser for all. Without MathJax, which it would fetch from the network.
        async with Kaleido(n=1, page_generator=PageGenerator(mathjax=False)) as browser:
            for figure in figures:
                path = folder / f"{figure.id}.png"
                options = {"format": "png", "width": WIDTH, "height": figure.height, "scale": SCALE}
                write_bytes(path, await browser.calc_fig(painted(figure, colours), opts=options))
                paths.append(path)

    try:
        with ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own in this thread
            pool.submit(lambda: asyncio.run(draw())).result()
    except ChromeNotFoundError:
        return [], "no pictures: they are drawn by Chrome or Chromium, and there is none here"
    except BrowserFailedError:
        return [], "no pictures: the Chrome or Chromium of this machine does not start"
    return paths, None


Theme = Literal["light", "dark"]
_FONT = "Open Sans, DejaVu Sans, Helvetica, Arial, sans-serif"


@cache
def palette(theme: Theme) -> Mapping[str, str]:
    """`--accent` → its value."""
    return dict(re.findall(r"(--[a-z0-9-]+):\s*([^;]+);", str(asset(f"{theme}.css"))))


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
