"""`merit compare`: several runs side by side, as one page and in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from merit.base.errors import InputError, printable
from merit.base.files import write_text
from merit.base.words import NONE, code, count, data_size, decimal, duration, plural, series, signed
from merit.report.differences import FACES, Difference, Side, compare_results, results_section
from merit.report.drawing import DataTable
from merit.report.evidence import group_label, read_evidence
from merit.report.page import Section, render_page
from merit.report.sections.cost import hosts, spent_on
from merit.report.sections.rounds import moved_by
from merit.run.events import is_job
from merit.run.guard import require_run
from merit.split.partition import Partition

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
        InputError: fewer than two runs, no run directory, one given twice; a file of a run makes no sense; or the page
            may not be written.
    """
    sides = read_sides(roots)
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


def read_sides(roots: Sequence[Path]) -> list[Side]:
    """The runs in the order given; the first is the reference.

    Raises:
        InputError: fewer than two, no run directory, or the same one twice.
    """
    if len(roots) < 2:
        raise InputError("a comparison needs at least two runs", field="RUN")
    places = [root.resolve() for root in roots]
    for root, place in zip(roots, places, strict=True):
        require_run(root)
        if places.count(place) > 1:
            raise InputError("the same run is given twice", file=root)
    return [Side(name, read_evidence(root)) for name, root in zip(_names(places), roots, strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


_SHOWN = 300


@dataclass(frozen=True)
class Setting:
    """One setting that is not the same everywhere; NONE where a run does not have it."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """All that differ, and how many are the same."""

    different: Sequence[Setting]
    same: int


def compare_settings(sides: Sequence[Side]) -> Settings:
    """From the resolved configurations, in which every default is written out."""
    flat = [dict(_flatten(side.evidence.config, ())) for side in sides]
    names = list(dict.fromkeys(name for values in flat for name in values))
    rows = [Setting(name, [values.get(name, NONE) for values in flat]) for name in names]
    different = [row for row in rows if len(set(row.values)) > 1]
    return Settings(different, len(rows) - len(different))


def settings_section(sides: Sequence[Side], found: Settings) -> Section:
    """The chapter."""
    different = len(found.different)
    sentence = (
        f"{plural(different, 'setting differs', 'settings differ')}; {found.same:,} are the same, versions included."
        if different
        else "The runs were made with the same settings and versions."
    )
    rows = [[setting.name, *setting.values] for setting in found.different[:_SHOWN]]
    notes = [f"{different - _SHOWN:,} more differ and are not shown."] if different > _SHOWN else []
    header = ["setting", *(side.name for side in sides)]
    tables = [("Settings that differ", DataTable(header, rows))] if rows else []
    context = {"sentences": [sentence], "tables": tables, "notes": notes}
    return Section("settings", "What was set differently", "versus", context)


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    else:
        yield ".".join(path), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


HEADER = ["run", "branches", "supervised tokens", "training, all branches", "longest branch", "whole run", "moved"]


def cost_rows(sides: Sequence[Side]) -> list[list[str]]:
    """The main method of each run; the whole run has its baselines and its evaluation in it."""
    return [_row(side) for side in sides]


def costs_section(sides: Sequence[Side]) -> Section:
    """The chapter."""
    stages = {side.name: _stage_seconds(side) for side in sides}
    names = list(dict.fromkeys(name for found in stages.values() for name in found))
    by_stage = [
        [name, *(duration(found[name]) if name in found else NONE for found in stages.values())] for name in names
    ]
    tables = [("The main method of each run", DataTable(HEADER, cost_rows(sides)))]
    if by_stage:
        tables.append(("Time per stage, over all sessions", DataTable(["stage", *stages], by_stage)))
    machines = {tuple(hosts(side.evidence.events)) for side in sides}
    notes = ["The runs were made on different machines: their times do not compare."] if len(machines) > 1 else []
    return Section("cost", "What each cost", "versus", {"tables": tables, "notes": notes})


def _stage_seconds(side: Side) -> dict[str, float]:
    return {name: item.seconds for name, item in spent_on(side.evidence.events).items() if not is_job(name)}


def _row(side: Side) -> list[str]:
    main = side.evidence.main
    seconds = [result.seconds for result in main.results]
    whole = sum(_stage_seconds(side).values())
    return [
        side.name,
        main.told_branches,
        count(sum(result.supervised_tokens for result in main.results)) if seconds else NONE,
        duration(sum(seconds)) if seconds else NONE,
        duration(max(seconds)) if seconds else NONE,
        duration(whole) if whole else NONE,
        data_size(sent) if (sent := moved_by(side.evidence, main)) else NONE,
    ]


@dataclass(frozen=True)
class Groups:
    """Each run's groups, and how they agree over the datasets that two runs share."""

    of: Sequence[dict[str, int]]  # dataset → group; empty where a run has no split, or no groups of its own
    rand: Sequence[Sequence[float | None]]  # adjusted Rand index: 1 the same groups, 0 chance
    moved: Sequence[Sequence[str]]  # datasets that stand with others than in the first run, best match of the groups


def compare_groups(sides: Sequence[Side]) -> Groups:
    """Numbers of groups mean nothing across runs; which datasets stand together does."""
    of = [_groups(side.evidence.main.partition) for side in sides]
    rand = [[_rand(a, b) for b in of] for a in of]
    return Groups(of, rand, [_moved(of[0], other) for other in of])


def groups_section(sides: Sequence[Side], found: Groups) -> Section:
    """The chapter."""
    names = [side.name for side in sides]
    sentences = []
    for k in range(1, len(sides)):
        index = found.rand[0][k]
        if index is None:
            sentences.append(f"{code(names[k])} and {code(names[0])} share no two datasets that both have split.")
            continue
        moved = found.moved[k]
        told = f"{series([code(name) for name in moved], limit=8)} stand elsewhere" if moved else "no dataset moved"
        sentences.append(f"{code(names[k])} against {code(names[0])}: adjusted Rand index {decimal(index, 2)}; {told}.")
    rows = [[name, *(decimal(value, 2) for value in line)] for name, line in zip(names, found.rand, strict=True)]
    tables = [("Adjusted Rand index: 1 the same groups, 0 what chance gives", DataTable(["run", *names], rows))]
    datasets = sorted({name for groups in found.of for name in groups}, key=lambda name: _place(found.of, name))
    if datasets:
        cells = [
            [name, *(group_label(groups[name]) if name in groups else NONE for groups in found.of)] for name in datasets
        ]
        tables.append((f"Where {plural(len(datasets), 'dataset')} stood", DataTable(["dataset", *names], cells)))
    notes = ["Groups are numbered in each run anew: group 1 of one may be group 0 of another."] if datasets else []
    context = {"sentences": sentences, "tables": tables, "notes": notes}
    return Section("groups", "How each was split", "versus", context)


def _groups(partition: Partition | None) -> dict[str, int]:
    """Empty where every group has every dataset, as in a soup."""
    if partition is None or sum(len(group.datasets) for group in partition.groups) != len(partition.group_of):
        return {}
    return dict(partition.group_of)


def _rand(a: dict[str, int], b: dict[str, int]) -> float | None:
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return None
    return float(adjusted_rand_score([a[name] for name in shared], [b[name] for name in shared]))


def _moved(a: dict[str, int], b: dict[str, int]) -> list[str]:
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return []
    together = np.zeros((max(a.values()) + 1, max(b.values()) + 1))
    for name in shared:
        together[a[name], b[name]] += 1
    match = {int(j): int(i) for i, j in zip(*linear_sum_assignment(-together), strict=True)}
    return [name for name in shared if match.get(b[name]) != a[name]]


def _place(groups: Sequence[dict[str, int]], name: str) -> tuple[list[int], str]:
    return [found.get(name, len(found)) for found in groups], name
