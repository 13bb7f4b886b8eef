"""The figures that a study publishes, as SVG."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.base.files import atomic_path
from merit.study.compare import AVERAGE, FACE_NAMES, Comparison
from merit.study.results import Ray, Results, Row

_log = logging.getLogger(__name__)
_COLOURS = {"joint": "#1b6ca8", "merit": "#c0392b", "random": "#7f8c8d", "soup": "#8e44ad", "other": "#2d8a4e"}
_SALT = "merit"  # of ids in the SVG: the same results give the same file


def write_figures(results: Results, folder: Path) -> list[Path]:
    """forest-, pareto- and bytes- figures, one a budget, and harm where it was asked; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        _log.warning("no figures: pip install 'merit-tuning[study]' for matplotlib")
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": _SALT, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    )
    matplotlib.rcParams["axes.spines.right"] = False
    written = []
    for budget in results.budgets:
        written.append(_save(_forest(results, budget), folder / f"forest-{budget}.svg"))
        written.append(_save(_pareto(results, budget), folder / f"pareto-{budget}.svg"))
        if any(row.budget == budget and row.bytes_moved for row in results.rows):
            written.append(_save(_bytes(results, budget), folder / f"bytes-{budget}.svg"))
    if results.answers:
        written.append(_save(_harm(results), folder / "harm.svg"))
    return written


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with atomic_path(path) as part:
        figure.savefig(part, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path


def _forest(results: Results, budget: str) -> Any:
    """Differences with intervals, a panel a face; filled where the interval excludes zero."""
    import matplotlib.pyplot as plt

    found = [item for item in results.comparisons if item.budget == budget]
    pairs = list(dict.fromkeys((item.a, item.b) for item in found))
    faces = list(dict.fromkeys(item.face for item in found))
    size = (3.0 * max(1, len(faces)) + 2, 0.17 * len(pairs) + 1.2)
    figure, axes = plt.subplots(1, max(1, len(faces)), figsize=size, sharey=True, squeeze=False)
    for axis, face in zip(axes[0], faces, strict=False):
        by_pair: dict[tuple[str, str], Comparison] = {(i.a, i.b): i for i in found if i.face == face}
        for row, pair in enumerate(pairs):
            item = by_pair[pair]
            colour = {"better": "#2d8a4e", "worse": "#c0392b"}.get(item.verdict, "#999999")
            axis.plot([item.low, item.high], [row, row], color=colour, lw=1.4)
            axis.plot(
                item.difference, row, "o", ms=3.5, color=colour, mfc="white" if item.verdict == "undecided" else colour
            )
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(FACE_NAMES[face])
        axis.set_xlabel("difference of loss, nats")
    axes[0][0].set_yticks(range(len(pairs)), [f"{a}  −  {b}" for a, b in pairs], fontsize=7)
    axes[0][0].set_ylim(len(pairs) - 0.5, -0.5)
    return figure


def _pareto(results: Results, budget: str) -> Any:
    """In-mixture loss against unseen and retention loss: a curve a ray, a point a method. Down and left is better."""
    import matplotlib.pyplot as plt

    faces = [face for face in ("unseen", "retention") if results.datasets.get(face)]
    figure, axes = plt.subplots(1, max(1, len(faces)), figsize=(6.2 * max(1, len(faces)), 5.2), squeeze=False)
    rows = [row for row in results.rows if row.budget == budget and row.method == row.label]
    base = next((row for row in results.rows if row.budget == budget and row.label == "base"), None)
    for axis, face in zip(axes[0], faces, strict=False):
        for ray in results.rays:
            if ray.budget == budget:
                _draw_ray(axis, ray, base, face)
        for row in rows:
            axis.plot(row.faces["in_mixture"].value, row.faces[face].value, "o", ms=4, color=_colour(row.label))
        axis.set_xlabel("in-mixture test loss")
        axis.set_ylabel(f"{FACE_NAMES[face]} test loss")
        _zoom(axis, rows, face)
        _name(axis, [(row.label, row.faces["in_mixture"].value, row.faces[face].value) for row in rows])
    return figure


def _draw_ray(axis: Any, ray: Ray, base: Row | None, face: str) -> None:
    points = [(p.faces["in_mixture"], p.faces[face]) for p in ray.points]
    if not points:  # seeds chose different scales, and no point is measured on test examples in all of them
        return
    look = {"color": _colour(ray.method), "lw": 0.9, "alpha": 0.6}
    axis.plot(*zip(*points, strict=True), marker=".", ms=3, **look)
    if base is not None:  # nothing was measured between θ0 and the ray's first point
        start = (base.faces["in_mixture"].value, base.faces[face].value)
        axis.plot(*zip(start, points[0], strict=True), ls=":", **look)


def _zoom(axis: Any, rows: list[Row], face: str) -> None:
    """Shows where methods are; θ0 lies far away, and its rays run out of the picture toward it."""
    for setter, values in (
        (axis.set_xlim, [row.faces["in_mixture"].value for row in rows]),
        (axis.set_ylim, [row.faces[face].value for row in rows]),
    ):
        if values:
            spread = max(max(values) - min(values), 1e-3)
            setter(min(values) - 0.15 * spread, max(values) + 0.25 * spread)


def _bytes(results: Results, budget: str) -> Any:
    """Loss against the bytes that training moves, a panel a face: a point a method, and a line through the merges after
    its rounds. Down and left is better."""
    import matplotlib.pyplot as plt

    rows = [row for row in results.rows if row.budget == budget and row.bytes_moved]
    methods = [row for row in rows if row.method == row.label]
    faces = [*(face for face, count in results.datasets.items() if count), AVERAGE]
    figure, axes = plt.subplots(1, len(faces), figsize=(4.2 * len(faces), 3.8), squeeze=False)
    for axis, face in zip(axes[0], faces, strict=True):
        ends = []
        for row in methods:
            path = [other for other in rows if other.label.startswith(f"{row.label}@")] + [row]
            points = [(item.bytes_moved or 0, (item.faces | {AVERAGE: item.average})[face].value) for item in path]
            axis.plot(*zip(*points, strict=True), marker=".", ms=3, lw=0.9, alpha=0.6, color=_colour(row.label))
            axis.plot(*points[-1], "o", ms=4, color=_colour(row.label))
            ends.append((row.label, *points[-1]))
        axis.set_xscale("log")
        axis.margins(x=0.15)  # room for the names
        _name(axis, ends)
        axis.set_title(FACE_NAMES[face])
        axis.set_xlabel("bytes moved")
    axes[0][0].set_ylabel("test loss")
    return figure


def _name(axis: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Writes each point's name beside it; a name that would lie on another one moves up. Limits must be final."""
    placed: list[Any] = []  # where names are, in pixels
    for label, x, y in sorted(points, key=lambda point: point[2]):
        name = axis.annotate(
            label, (x, y), fontsize=6, xytext=(4, -2), textcoords="offset points", color=_colour(label)
        )
        box = name.get_window_extent()
        start = box.y0
        while below := [other for other in placed if box.overlaps(other)]:
            box = box.translated(0, max(other.y1 for other in below) - box.y0 + 0.5)
        name.set_position((4, -2 + (box.y0 - start) * 72 / axis.figure.dpi))
        placed.append(box)


def _harm(results: Results) -> Any:
    """Rank correlations of similarity with benefit, with intervals."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 0.4 * len(results.answers) + 1.2))
    for row, item in enumerate(results.answers):
        for offset, found, colour, label in (
            (-0.12, item.rank, "#7f8c8d", "all pairs"),
            (0.12, item.centred, "#1b6ca8", "without row and column effects"),
        ):
            axis.plot([found.low, found.high], [row + offset] * 2, color=colour, lw=1.5)
            axis.plot(found.value, row + offset, "o", color=colour, ms=4, label=label if not row else None)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(results.answers)), [item.variant for item in results.answers])
    axis.invert_yaxis()
    axis.set_xlabel("rank correlation of similarity with benefit")
    axis.legend(fontsize=7)
    return figure


def _colour(name: str) -> str:
    return next(
        (colour for key, colour in _COLOURS.items() if name.removeprefix("best:").startswith(key)), _COLOURS["other"]
    )
