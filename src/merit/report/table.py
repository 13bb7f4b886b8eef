"""The results table as text: one formatting for the terminal, the report and the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merit.base.errors import printable
from merit.base.words import NONE, compact, data_size, decimal, duration, plain, with_error
from merit.evaluate.scores import Table, TableRow

BEST = "★"


@dataclass(frozen=True)
class Column:
    """A column: its heading, its cells, and which model does best in it (`better` is None where none does)."""

    title: str
    cell: Callable[[TableRow], str]
    value: Callable[[TableRow], float | None]
    better: str | None = None  # low or high
    base_counts: bool = True  # θ0 is no contender where it is the reference itself


_COLUMNS = (
    Column(
        "in-mixture loss ↓",
        lambda row: with_error(row.in_mixture, row.in_mixture_se),
        lambda row: row.in_mixture,
        "low",
    ),
    Column(
        "exact match ↑",
        lambda row: with_error(row.exact, row.exact_se),
        lambda row: row.exact,
        "high",
    ),
    Column("unseen loss ↓", lambda row: with_error(row.unseen, row.unseen_se), lambda row: row.unseen, "low"),
    Column("drift ↓", lambda row: with_error(row.drift, row.drift_se), lambda row: row.drift, "low", False),
    Column("‖θ − θ0‖", lambda row: decimal(row.displacement, 2), lambda row: row.displacement),
    Column(
        "tokens",
        lambda row: compact(row.supervised_tokens) if row.kind != "base" else NONE,
        lambda row: row.supervised_tokens or None,
    ),
    Column(
        "training",
        lambda row: duration(row.train_seconds) if row.kind != "base" else NONE,
        lambda row: row.train_seconds or None,
    ),
    Column(
        "bytes moved",
        lambda row: data_size(row.bytes_moved) if row.bytes_moved else NONE,
        lambda row: row.bytes_moved or None,
    ),
    Column(
        "wall clock",
        lambda row: duration(row.machine_seconds) if row.machine_seconds else NONE,
        lambda row: row.machine_seconds,
    ),
)


def shown_rows(table: Table, *, branches: bool = False) -> list[TableRow]:
    """The models of the table; single branches are parts of one, and shown only when asked for."""
    return [row for row in table.rows if branches or row.kind != "branch"]


def shown_columns(rows: Sequence[TableRow]) -> list[Column]:
    """The columns in which any row has a figure."""
    return [column for column in _COLUMNS if any(column.value(row) is not None for row in rows)]


def is_best(row: TableRow, column: Column, rows: Sequence[TableRow]) -> bool:
    """Whether `row` has the best figure of a column with a direction. Branches and earlier rounds do not compete; ties
    all win."""
    contenders = [
        (column.value(other), other)
        for other in rows
        if other.kind == "merge" or (other.kind == "base" and column.base_counts)
    ]
    values = [value for value, _ in contenders if value is not None]
    if column.better is None or len(set(values)) < 2 or not any(row is other for _, other in contenders):
        return False  # where all are equal, none is best
    return column.value(row) == (min(values) if column.better == "low" else max(values))


def table_rows(table: Table, *, branches: bool = False) -> list[list[str]]:
    """Header and cells, all strings: model, what it is, then every column that has a figure. ★ marks the best."""
    rows = shown_rows(table, branches=branches)
    columns = shown_columns(rows)
    lines = [["model", "", *(column.title for column in columns)]]
    for row in rows:
        cells = [f"{column.cell(row)} {BEST}" if is_best(row, column, rows) else column.cell(row) for column in columns]
        lines.append([printable(row.label), printable(row.description), *cells])
    return lines


def table_markdown(table: Table, *, branches: bool = False) -> str:
    """The same as a Markdown table, for the model card."""
    header, *body = table_rows(table, branches=branches)
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    lines = [header, rule, *(map(plain, line) for line in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
