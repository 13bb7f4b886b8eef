"""What was set differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merit.report.figure import DataTable, Section
from merit.report.versus.sides import Side
from merit.report.words import NONE, plural

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
    context = {
        "sentences": [sentence],
        "tables": [("Settings that differ", DataTable(["setting", *(side.name for side in sides)], rows))]
        if rows
        else [],
        "figures": [],
        "notes": notes,
    }
    return Section("settings", "What was set differently", "versus", context)


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    else:
        yield ".".join(path), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
