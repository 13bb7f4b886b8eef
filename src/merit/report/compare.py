"""`merit compare`: several runs side by side, as one page and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.files import write_text
from merit.report.misfit import refusing_misfits
from merit.report.page import render_page
from merit.report.versus.results import FACES, Difference, compare_results, results_section
from merit.report.versus.sides import (
    HEADER,
    Groups,
    Settings,
    Side,
    compare_groups,
    compare_settings,
    cost_rows,
    costs_section,
    groups_section,
    read_sides,
    settings_section,
)
from merit.report.words import decimal, plural, series, signed

_SETTINGS = 20  # in the terminal; the page has all


@dataclass(frozen=True)
class SideBySide:
    """What was found, for the terminal and for scripts."""

    sides: Sequence[Side]
    settings: Settings
    groups: Groups
    differences: Sequence[Difference]
    notes: Sequence[str]

    @property
    def tables(self) -> list[list[list[str]]]:
        """Settings, groups, the merges' differences, cost: rows of cells, the header first."""
        names = [side.name for side in self.sides]
        rows = [[item.name, *item.values] for item in self.settings.different[:_SETTINGS]]
        rand = [[name, *(decimal(x, 2) for x in line)] for name, line in zip(names, self.groups.rand, strict=True)]
        merges = [
            [item.run, FACES[item.face], signed(item.value), signed(item.low), signed(item.high), item.verdict]
            for item in self.differences
            if item.model == "merit"
        ]
        return [
            *([[["setting", *names], *rows]] if rows else []),
            [["adjusted Rand index", *names], *rand],
            *([[[f"minus {names[0]}", "measure", "difference", "from", "to", "it is"], *merges]] if merges else []),
            [HEADER, *cost_rows(self.sides)],
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "runs": [str(side.evidence.run.root) for side in self.sides],
            "settings": [{"setting": item.name, "values": list(item.values)} for item in self.settings.different],
            "adjusted_rand": [list(line) for line in self.groups.rand],
            "differences": [_plain(item) for item in self.differences],
            "notes": list(self.notes),
        }


def build_comparison(roots: Sequence[Path], page: Path) -> SideBySide:
    """Reads the runs, and writes the page.

    Raises:
        InputError: fewer than two runs, no run directory, one given twice; its files do not fit together, or
            the page may not be written.
    """
    sides = read_sides(roots)
    with refusing_misfits(roots[-1]):
        settings, groups = compare_settings(sides), compare_groups(sides)
        differences, notes = compare_results(sides)
        problems = [f"`{side.name}`: {problem}" for side in sides for problem in side.evidence.problems]
        text = render_page(
            "report.html.j2",
            eyebrow="Runs side by side",
            name=" · ".join(side.name for side in sides),
            headline=_headline(sides, differences),
            measures=[],
            sections=[
                settings_section(sides, settings),
                groups_section(sides, groups),
                results_section(sides, differences, [*notes, *problems]),
                costs_section(sides),
            ],
            follow=None,
            now=None,
        )
    write_text(page, text)
    return SideBySide(sides, settings, groups, differences, [*notes, *problems])


def _plain(item: Difference) -> dict[str, Any]:
    return {
        "run": item.run,
        "model": item.model,
        "face": item.face,
        "difference": item.value,
        "low": item.low,
        "high": item.high,
        "examples": item.examples,
        "verdict": item.verdict,
    }


def _headline(sides: Sequence[Side], differences: Sequence[Difference]) -> str:
    reference = sides[0].name
    told = []
    for side in sides[1:]:
        mine = [item for item in differences if item.run == side.name and item.model == "merit"]
        parts = [
            f"{verdict} in {series([FACES[item.face] for item in mine if item.verdict == verdict])}"
            for verdict in ("better", "worse")
            if any(item.verdict == verdict for item in mine)
        ]
        if parts:
            told.append(f"The merge of `{side.name}` is {' and '.join(parts)} than that of `{reference}`.")
        elif mine:
            told.append(f"The merges of `{side.name}` and `{reference}` cannot be told apart on these examples.")
    return " ".join(told) or f"{plural(len(sides), 'run')} without a merge that was measured on the same examples."
