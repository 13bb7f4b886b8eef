"""Figures and sections: what a page of the report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataTable:
    """The numbers of a figure as a table: what a screen reader reads, what is saved as CSV."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, which stand to the right."""
        return [
            all(row[i][:1] in "+−–0123456789" for row in self.rows if i < len(row)) for i in range(len(self.header))
        ]


@dataclass(frozen=True)
class View:
    """Another look at the same figure, chosen with a button. Traces that name a view in `meta` are drawn only in it."""

    label: str
    restyle: Mapping[str, Any]  # for trace 0
    relayout: Mapping[str, Any] = field(default_factory=dict)  # layout changes, as dotted paths
    order: Sequence[int] = ()  # rows and columns, as positions in the search's names; empty: as they are


@dataclass(frozen=True)
class Search:
    """Lets a reader look up one row and column of a heat map. All in drawing order of the first view."""

    names: Sequence[str]
    groups: Sequence[str]  # what each belongs to, or empty strings
    view: int  # the view whose numbers are told; its order is that of `names`


@dataclass(frozen=True)
class Figure:
    """One plotly figure. Colours are names of CSS variables ("--group-1"), so that light and dark share one figure."""

    id: str
    title: str
    alt: str  # what a person sees in it, in a sentence or two
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: DataTable
    height: int = 380
    narrow: Mapping[str, Any] = field(default_factory=dict)  # layout changes on a phone, as dotted paths
    views: Sequence[View] = ()
    search: Search | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "data": list(self.traces),
            "layout": {"height": self.height, **self.layout},
            "narrow": dict(self.narrow),
            "views": [asdict(view) for view in self.views],
            "search": asdict(self.search) if self.search else None,
        }


@dataclass(frozen=True)
class Section:
    """One chapter of the story. `template` is below templates/sections."""

    id: str
    title: str
    template: str
    context: Mapping[str, Any] = field(default_factory=dict)


def missing(id: str, title: str, why: str) -> Section:
    """The chapter of a stage that has not run."""
    return Section(id, title, "missing", {"why": why})
