"""What a study publishes: tables for a terminal, Markdown, LaTeX and HTML, and figures as SVG."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from merit.base.files import write_text
from merit.base.words import NONE, data_size, decimal, plain, plural
from merit.study.compare import AVERAGE, FACE_NAMES, Comparison, Interval
from merit.study.figures import write_figures
from merit.study.results import Results, Row, collect
from merit.study.spec import Study

Block = str | list[list[str]] | Path  # a line of Markdown, a table with its header, a figure

_FIGURES = ("bytes", "forest", "pareto")  # a budget's
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
            *(
                block
                for machines, rows in wall_clock_tables(results, budget)
                for block in (_wall_clock(machines), rows)
            ),
            "What validation chose, seed by seed:",
            *(f"- `{row.label}`: {'; '.join(row.chosen)}" for row in _rows(results, budget) if row.chosen),
            *(figure for kind in _FIGURES if (figure := folder / f"{kind}-{budget}.svg").is_file()),
            f"### Differences, {budget}",
            "Loss of the first minus loss of the second; negative: the first is better.",
        ]
        for face in (*_faces(results), AVERAGE):
            found = [c for c in results.comparisons if c.budget == budget and c.face == face]
            if found:
                blocks += [f"**{FACE_NAMES[face]}**", [_COMPARED, *(_compared(item) for item in found)]]
    if results.answers:
        blocks += ["## Does conflict predict harm?", _answers(results), *folder.glob("harm.svg")]
    return blocks


def main_table(results: Results, budget: str) -> list[list[str]]:
    """Header and a row for each method of one budget, but for those of a larger batch."""
    return _table(results, "tokens", [(row, f"{row.passes:.3g}") for row in _rows(results, budget) if row.batch == 1])


def wall_clock_tables(results: Results, budget: str) -> list[tuple[int, list[list[str]]]]:
    """Machines, and the table of what trains on them at once for as many steps: joint training with as many times the
    batch, and merges of as many branches. All saw the tokens of one pass."""
    rows = [row for row in _rows(results, budget) if row.passes == 1]
    return [
        (machines, _table(results, "steps", [(row, f"{row.steps:,}") for row in rows if row.machines == machines]))
        for machines in sorted({row.batch for row in rows} - {1})
    ]


def _wall_clock(machines: int) -> str:
    return f"### Equal wall clock on {machines} machines"


def _table(results: Results, second: str, shown: Sequence[tuple[Row, str]]) -> list[list[str]]:
    """Header and rows, each with the text of its `second` column."""
    faces = _faces(results)
    moved = any(row.bytes_moved is not None for row, _ in shown)  # earlier versions did not say
    asked = [face for face in faces if any(face in row.choice for row, _ in shown)]  # earlier versions did not ask
    choices = [f"choice, {FACE_NAMES[face]}" for face in asked]
    rows = [["method", second, *(FACE_NAMES[face] for face in faces), "average", *choices, "exact", "drift", "‖θ−θ0‖"]]
    rows[0] += ["bytes"] if moved else []
    for row, text in shown:
        values = [*(row.faces[face] for face in faces), row.average]
        rows.append(
            [
                row.label,
                text,
                *(f"{item.value:.3f} ± {_half(item):.3f}" for item in values),
                *(_share(row.choice.get(face)) for face in asked),
                NONE if row.exact is None else f"{row.exact:.1%}",
                decimal(row.drift),
                f"{row.distance:.2f}",
                *([data_size(row.bytes_moved) if row.bytes_moved else NONE] if moved else []),
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
    faces, seeds = [*_faces(results), AVERAGE], plural(len(results.seeds), "seed")
    lines = [
        f"% {results.name}: test loss, mean over {seeds}; brackets: half of the 95% interval",
        "\\begin{tabular}{ll" + "r" * len(faces) + "}",
        "\\toprule",
        "Method & Tokens & " + " & ".join(FACE_NAMES[face].capitalize() for face in faces) + " \\\\",
    ]
    for budget in results.budgets:
        rows = [row for row in _rows(results, budget) if row.batch == 1]
        best = {face: min((row.faces | {AVERAGE: row.average})[face].value for row in rows) for face in faces}
        lines += ["\\midrule", f"\\multicolumn{{{2 + len(faces)}}}{{l}}{{\\emph{{Budget: {_tex(budget)}}}}} \\\\"]
        for row in rows:
            cells = []
            for face in faces:
                item = (row.faces | {AVERAGE: row.average})[face]
                number = f"{item.value:.3f}"
                number = f"\\textbf{{{number}}}" if item.value == best[face] else number
                cells.append(f"{number} {{\\scriptsize({_half(item):.3f})}}")
            lines.append(f"{_tex(row.label)} & {row.passes:.3g} & " + " & ".join(cells) + " \\\\")
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
    parts = ", ".join(plural(count, f"{FACE_NAMES[face]} dataset") for face, count in results.datasets.items())
    lines = [
        f"- {results.parameters:,} parameters; seeds {', '.join(map(str, results.seeds))}; {parts}.",
        f"- Test examples a seed: {', '.join(f'{FACE_NAMES[face]} {n}' for face, n in results.examples.items())}.",
        "- `*`: at the scale that validation chose; `best:` a pool's best by validation. Tokens: in passes.",
        *([_moved_words(results.machines)] if results.machines > 1 else []),
        *(f"- {note}" for note in results.notes),
        *(f"- `{name}` did not run: {why}." for name, why in results.skipped.items()),
        "- " + ", ".join(f"{key} {value}" for key, value in results.machine.items()) + ".",
    ]
    unfinished = ["- **Unfinished**: some seeds or budgets are still to run."]
    return lines if results.complete else unfinished + lines


def _moved_words(machines: int) -> str:
    return (
        "- Bytes: what machines send while they train. A branch sends its weights at the end of every round, and "
        "receives the merge that it goes on from. Joint training counts as data-parallel: "
        f"{machines} machines all-reduce its gradients in every step. Weights and gradients are float32."
    )


def _marked(line: str) -> str:
    """A line of Markdown as HTML; it has bold words and code, and no more."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _rows(results: Results, budget: str) -> list[Row]:
    return [row for row in results.rows if row.budget == budget]


def _faces(results: Results) -> list[str]:
    return [face for face, count in results.datasets.items() if count]


def _share(item: Interval | None) -> str:
    return NONE if item is None else f"{item.value:.1%} ± {_half(item):.1%}"


def _half(item: Interval) -> float:
    return (item.high - item.low) / 2


def _tex(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, f"\\{char}" if char != "\\" else "/")
    return text
