"""The tables: for a terminal, Markdown, LaTeX and one HTML page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from merit.base.words import plain
from merit.study.results import Comparison, Interval, Results, Row

_FACES = {"in_mixture": "in-mixture", "unseen": "unseen", "retention": "retention", "average": "average"}
_VERDICT = {"better": "▼ better", "worse": "▲ worse", "undecided": "undecided"}


def console_lines(results: Results) -> list[str]:
    """What `merit study` prints: notes, and how the subjects fare against each control."""
    lines = [f"{results.name}: {len(results.seeds)} seeds, budgets {', '.join(results.budgets)}"]
    lines += [f"  {note}" for note in results.notes]
    for budget in results.budgets:
        lines.append(f"{_title(results, budget)}:")
        lines += [f"  {line}" for line in _grid(header(results), [_cells(row, results) for row in of(results, budget)])]
    return lines


def _title(results: Results, budget: str) -> str:
    seeds = len(results.seeds_of(budget))
    return budget if seeds == len(results.seeds) else f"{budget} ({seeds} seed{'s' * (seeds != 1)})"


def of(results: Results, budget: str) -> list[Row]:
    """The rows of one budget."""
    return [row for row in results.rows if row.budget == budget]


def header(results: Results) -> list[str]:
    """Of the main table."""
    faces = [_FACES[face] for face in _faces(results)]
    return ["method", "tokens", *faces, "average", "exact", "drift", "‖θ−θ0‖"]


def markdown(results: Results) -> str:
    """All tables."""
    lines = [f"# Study: {results.name}", "", *_preface(results)]
    for budget in results.budgets:
        lines += [
            "",
            f"## Budget: {_title(results, budget)}",
            "",
            "Test loss (nats a supervised token), mean over seeds ± half of the 95% interval. Lower is better.",
        ]
        lines += ["", *_md([header(results), *(_cells(row, results) for row in of(results, budget))]), ""]
        lines += ["What validation chose, seed by seed:", ""]
        lines += [f"- `{row.label}`: {'; '.join(row.chosen)}" for row in of(results, budget) if row.chosen]
        lines += [
            "",
            f"### Differences, {budget}",
            "",
            "Loss of the first minus loss of the second; negative: the first is better.",
        ]
        for face in (*_faces(results), "average"):
            found = [c for c in results.comparisons if c.budget == budget and c.face == face]
            if found:
                lines += ["", f"**{_FACES[face]}**", "", *_md([_COMPARED, *(_compared(item) for item in found)])]
    if results.answers:
        lines += ["", "## Does conflict predict harm?", "", *_md(_answer_rows(results))]
    return "\n".join(lines) + "\n"


def latex_table(results: Results) -> str:
    """The main table in the paper's shape: methods down, faces across, a block a budget."""
    faces = [*_faces(results), "average"]
    lines = [
        f"% {results.name}: test loss, mean over {len(results.seeds)} seeds; brackets: half of the 95% interval",
        "\\begin{tabular}{ll" + "r" * len(faces) + "}",
        "\\toprule",
        "Method & Tokens & " + " & ".join(_FACES[face].capitalize() for face in faces) + " \\\\",
    ]
    for budget in results.budgets:
        rows = of(results, budget)
        best = {face: min(_value(row, face).value for row in rows) for face in faces}
        lines += ["\\midrule", f"\\multicolumn{{{2 + len(faces)}}}{{l}}{{\\emph{{Budget: {_tex(budget)}}}}} \\\\"]
        for row in rows:
            cells = []
            for face in faces:
                item = _value(row, face)
                number = f"{item.value:.3f}"
                number = f"\\textbf{{{number}}}" if item.value == best[face] else number
                cells.append(f"{number} {{\\scriptsize({_half(item):.3f})}}")
            lines.append(f"{_tex(row.label)} & {row.passes:g} & " + " & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def html_page(results: Results, folder: Path) -> str:
    """One page without scripts or network: tables, and the figures that lie in `folder`, inline."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>Study: {html.escape(results.name)}</title>",
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
        "td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
        "td:first-child,th:first-child{text-align:left}figure{margin:1.5rem 0}svg{max-width:100%;height:auto}</style>",
        f"<h1>Study: {html.escape(results.name)}</h1>",
        *(f"<p>{_marked(line.strip('-# '))}</p>" for line in _preface(results) if line),
    ]
    for budget in results.budgets:
        parts += [f"<h2>Budget: {html.escape(_title(results, budget))}</h2>"]
        parts.append(_table([header(results), *(_cells(row, results) for row in of(results, budget))]))
        for figure in sorted(folder.glob(f"*-{budget}.svg")):
            drawn = figure.read_text(encoding="utf-8")
            parts.append(f"<figure>{drawn[drawn.index('<svg') :]}</figure>")
        for face in (*_faces(results), "average"):
            found = [c for c in results.comparisons if c.budget == budget and c.face == face]
            if found:
                parts.append(f"<h3>Differences: {_FACES[face]}</h3>")
                parts.append(_table([_COMPARED, *(_compared(item) for item in found)]))
    if results.answers:
        parts += ["<h2>Does conflict predict harm?</h2>", _table(_answer_rows(results))]
    return "\n".join([*parts, "</html>"]) + "\n"


_COMPARED = ["first", "second", "difference", "95% interval", "p (Holm)", "d", "of joint's gain", "datasets won", ""]


def _compared(item: Comparison) -> list[str]:
    return [
        item.a,
        item.b,
        f"{item.difference:+.3f}",
        f"[{item.low:+.3f}, {item.high:+.3f}]",
        f"{item.holm:.2g}",
        "–" if item.effect is None else f"{item.effect:+.1f}",
        "–" if item.share is None else f"{item.share:+.0%}",
        f"{item.wins} of {item.datasets}",
        _VERDICT[item.verdict],
    ]


def _answer_rows(results: Results) -> list[list[str]]:
    rows = [["similarity", "rank correlation with benefit", "centred", "centred, minus raw's"]]
    for item in results.answers:
        rows.append(
            [item.variant, _span(item.rank), _span(item.centred), "–" if item.gain is None else _span(item.gain)]
        )
    return rows


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
    if not results.complete:
        lines.insert(0, "- **Unfinished**: some seeds or budgets are still to run.")
    return lines


def _marked(line: str) -> str:
    """A line of the preface's Markdown as HTML; it has bold words and code, and no more."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _faces(results: Results) -> list[str]:
    return [face for face, count in results.datasets.items() if count]


def _cells(row: Row, results: Results) -> list[str]:
    faces = [row.faces[face] for face in _faces(results)]
    return [
        row.label,
        f"{row.passes:g}",
        *(f"{item.value:.3f} ± {_half(item):.3f}" for item in (*faces, row.average)),
        "–" if row.exact is None else f"{row.exact:.1%}",
        "–" if row.drift is None else f"{row.drift:.3f}",
        f"{row.distance:.2f}",
    ]


def _value(row: Row, face: str) -> Interval:
    return row.average if face == "average" else row.faces[face]


def _half(item: Interval) -> float:
    return (item.high - item.low) / 2


def _span(item: Interval) -> str:
    return f"{item.value:+.2f} [{item.low:+.2f}, {item.high:+.2f}]"


def _md(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]


def _tex(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, f"\\{char}" if char != "\\" else "/")
    return text
