"""What a study publishes: tables for a terminal, Markdown, LaTeX and HTML, and figures as SVG."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.base.files import atomic_path, write_text
from merit.base.words import NONE, decimal, plain, plural
from merit.study.compare import AVERAGE, Comparison, Interval
from merit.study.results import Ray, Results, Row, collect
from merit.study.spec import Study

Block = str | list[list[str]] | Path  # a line of Markdown, a table with its header, a figure

_log = logging.getLogger(__name__)
_FACES = {"in_mixture": "in-mixture", "unseen": "unseen", "retention": "retention", AVERAGE: "average"}
_VERDICT = {"better": "▼ better", "worse": "▲ worse", "undecided": "undecided"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}figure{margin:1.5rem 0}svg{max-width:100%;height:auto}"
)


def publish(study: Study) -> Results:
    """Writes results/: results.json, tables.md, table.tex, results.html and the figures.

    Raises:
        InputError: no job has finished yet.
        StageError: methods at unequal tokens.
    """
    found = collect(study)
    found.save(study.dir.table)
    draw(found, study.dir.results)
    return found


def draw(found: Results, folder: Path) -> None:
    """The tables and figures of results, which may be an earlier study's."""
    write_figures(found, folder)
    blocks = document(found, folder)
    write_text(folder / "tables.md", markdown(blocks))
    write_text(folder / "table.tex", latex_table(found))
    write_text(folder / "results.html", html_page(f"Study: {found.name}", blocks))


def document(results: Results, folder: Path) -> list[Block]:
    """All tables, and the figures that are in `folder`."""
    blocks: list[Block] = [f"# Study: {results.name}", *_preface(results)]
    for budget in results.budgets:
        blocks += [
            f"## Budget: {budget_title(results, budget)}",
            "Test loss (nats a supervised token), mean over seeds ± half of the 95% interval. Lower is better.",
            main_table(results, budget),
            "What validation chose, seed by seed:",
            *(f"- `{row.label}`: {'; '.join(row.chosen)}" for row in _rows(results, budget) if row.chosen),
            *sorted(folder.glob(f"*-{budget}.svg")),
            f"### Differences, {budget}",
            "Loss of the first minus loss of the second; negative: the first is better.",
        ]
        for face in (*_faces(results), AVERAGE):
            found = [c for c in results.comparisons if c.budget == budget and c.face == face]
            if found:
                blocks += [f"**{_FACES[face]}**", [_COMPARED, *(_compared(item) for item in found)]]
    if results.answers:
        blocks += ["## Does conflict predict harm?", _answers(results), *folder.glob("harm.svg")]
    return blocks


def main_table(results: Results, budget: str) -> list[list[str]]:
    """Header and a row for each method of one budget."""
    faces = _faces(results)
    rows = [["method", "tokens", *(_FACES[face] for face in faces), "average", "exact", "drift", "‖θ−θ0‖"]]
    for row in _rows(results, budget):
        values = [*(row.faces[face] for face in faces), row.average]
        rows.append(
            [
                row.label,
                f"{row.passes:g}",
                *(f"{item.value:.3f} ± {_half(item):.3f}" for item in values),
                NONE if row.exact is None else f"{row.exact:.1%}",
                decimal(row.drift),
                f"{row.distance:.2f}",
            ]
        )
    return rows


def budget_title(results: Results, budget: str) -> str:
    """The budget's name, with the number of seeds if it is not that of the study."""
    seeds = len(results.seeds_of(budget))
    return budget if seeds == len(results.seeds) else f"{budget} ({plural(seeds, 'seed')})"


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks but the figures, with an empty line between two that are not of one list."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, Path):
            continue
        if lines and not (isinstance(block, str) and block[:2] == "- " == lines[-1][:2]):
            lines.append("")
        if isinstance(block, str):
            lines.append(block)
            continue
        rows = ["| " + " | ".join(map(plain, row)) + " |" for row in block]
        lines += [rows[0], "|" + " --- |" * len(block[0]), *rows[1:]]
    return "\n".join(lines) + "\n"


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """One page without scripts or network; figures are inline."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for block in blocks:
        if isinstance(block, Path):
            drawn = block.read_text(encoding="utf-8")
            parts.append(f"<figure>{drawn[drawn.index('<svg') :]}</figure>")
        elif isinstance(block, str):
            level = len(block) - len(block.lstrip("#"))
            tag = f"h{level}" if level else "p"
            parts.append(f"<{tag}>{_marked(block.removeprefix('- ').lstrip('# '))}</{tag}>")
        else:
            head, *rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in block]
            body = "".join(f"<tr>{row}</tr>" for row in rows)
            parts.append(f"<table><tr>{head.replace('td>', 'th>')}</tr>{body}</table>")
    return "\n".join([*parts, "</html>"]) + "\n"


def latex_table(results: Results) -> str:
    """The main table in the paper's shape: methods down, faces across, a block a budget."""
    faces = [*_faces(results), AVERAGE]
    lines = [
        f"% {results.name}: test loss, mean over {len(results.seeds)} seeds; brackets: half of the 95% interval",
        "\\begin{tabular}{ll" + "r" * len(faces) + "}",
        "\\toprule",
        "Method & Tokens & " + " & ".join(_FACES[face].capitalize() for face in faces) + " \\\\",
    ]
    for budget in results.budgets:
        rows = _rows(results, budget)
        best = {face: min((row.faces | {AVERAGE: row.average})[face].value for row in rows) for face in faces}
        lines += ["\\midrule", f"\\multicolumn{{{2 + len(faces)}}}{{l}}{{\\emph{{Budget: {_tex(budget)}}}}} \\\\"]
        for row in rows:
            cells = []
            for face in faces:
                item = (row.faces | {AVERAGE: row.average})[face]
                number = f"{item.value:.3f}"
                number = f"\\textbf{{{number}}}" if item.value == best[face] else number
                cells.append(f"{number} {{\\scriptsize({_half(item):.3f})}}")
            lines.append(f"{_tex(row.label)} & {row.passes:g} & " + " & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_COMPARED = ["first", "second", "difference", "95% interval", "p (Holm)", "d", "of joint's gain", "datasets won", ""]


def _compared(item: Comparison) -> list[str]:
    return [
        item.a,
        item.b,
        f"{item.difference:+.3f}",
        f"[{item.low:+.3f}, {item.high:+.3f}]",
        f"{item.holm:.2g}",
        NONE if item.effect is None else f"{item.effect:+.1f}",
        NONE if item.share is None else f"{item.share:+.0%}",
        f"{item.wins} of {item.datasets}",
        _VERDICT[item.verdict],
    ]


def _answers(results: Results) -> list[list[str]]:
    def span(item: Interval | None) -> str:
        return NONE if item is None else f"{item.value:+.2f} [{item.low:+.2f}, {item.high:+.2f}]"

    rows = [[item.variant, span(item.rank), span(item.centred), span(item.gain)] for item in results.answers]
    return [["similarity", "rank correlation with benefit", "centred", "centred, minus raw's"], *rows]


def _preface(results: Results) -> list[str]:
    parts = ", ".join(f"{count} {_FACES[face]} datasets" for face, count in results.datasets.items())
    lines = [
        f"- {results.parameters:,} parameters; seeds {', '.join(map(str, results.seeds))}; {parts}.",
        f"- Test examples a seed: {', '.join(f'{_FACES[face]} {n}' for face, n in results.examples.items())}.",
        "- `*`: at the scale that validation chose; `best:` a pool's best by validation. Tokens: in passes.",
        *(f"- {note}" for note in results.notes),
        *(f"- `{name}` did not run: {why}." for name, why in results.skipped.items()),
        "- " + ", ".join(f"{key} {value}" for key, value in results.machine.items()) + ".",
    ]
    unfinished = ["- **Unfinished**: some seeds or budgets are still to run."]
    return lines if results.complete else unfinished + lines


def _marked(line: str) -> str:
    """A line of Markdown as HTML; it has bold words and code, and no more."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _rows(results: Results, budget: str) -> list[Row]:
    return [row for row in results.rows if row.budget == budget]


def _faces(results: Results) -> list[str]:
    return [face for face, count in results.datasets.items() if count]


def _half(item: Interval) -> float:
    return (item.high - item.low) / 2


def _tex(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, f"\\{char}" if char != "\\" else "/")
    return text


_COLOURS = {"joint": "#1b6ca8", "merit": "#c0392b", "random": "#7f8c8d", "soup": "#8e44ad", "other": "#2d8a4e"}
_NAMES = {**_FACES, "unseen": "unseen families"}
_SALT = "merit"  # of ids in the SVG: the same results give the same file


def write_figures(results: Results, folder: Path) -> list[Path]:
    """forest-, pareto- and, where it was asked, harm figures, one a budget; none without matplotlib."""
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
        axis.set_title(_NAMES[face])
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
            axis.annotate(
                row.label,
                (row.faces["in_mixture"].value, row.faces[face].value),
                fontsize=6,
                xytext=(3, 2),
                textcoords="offset points",
                color=_colour(row.label),
            )
        axis.set_xlabel("in-mixture test loss")
        axis.set_ylabel(f"{_NAMES[face]} test loss")
        _zoom(axis, rows, face)
    return figure


def _draw_ray(axis: Any, ray: Ray, base: Row | None, face: str) -> None:
    points = [(p.faces["in_mixture"], p.faces[face]) for p in ray.points]
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
