"""A file that holds several datasets: a column names the dataset of each row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from merit.base.errors import InputError, did_you_mean
from merit.data.draft import Dataset, Draft
from merit.data.source import open_source

_COLUMNS = ("dataset", "source", "task", "task_name", "subset", "category", "domain")
_MOST = 64  # datasets in one file; a column with more values names something else
_FEWEST = 2  # rows: one to train on, one to hold out


def add_file(draft: Draft, item: Dataset, by: str | None = None) -> None:
    """Adds the dataset in a file; or one for each value of a column that names datasets.

    Args:
        by: that column. Default: the first of a few usual names that has at least two values, and at most 64.

    Raises:
        InputError: the file cannot be read; it has no column `by`, or that column does not name datasets.
    """
    column, counts, rows = _counted(item, by)
    if column is None:
        draft.add(item)
        return
    for value, count in counts.most_common():
        part = replace(
            item,
            label=str(value),
            fields={**item.fields, "where": {column: value}},
            remark=f"{count:,} rows",
            size=(item.size or 0) * count // max(rows, 1),
        )
        draft.add(part, look=_too_few if count < _FEWEST else None)
    rest = rows - counts.total()
    draft.notes.append(f"{item.path}: one dataset for each of the {len(counts)} values of `{column}`")
    if rest:
        draft.notes.append(f"{item.path}: rows without `{column}`, which are in no dataset: {rest:,}")


def _too_few(name: str, item: Dataset) -> str:
    wanted = ", ".join(f"{column}: {value}" for column, value in item.config.where.items())
    raise InputError(f"fewer than {_FEWEST} rows have `{wanted}`; one is held out", file=item.path)


def _counted(item: Dataset, by: str | None) -> tuple[str | None, Counter[Any], int]:
    """The column that names datasets, the rows of each of its values, and all rows that can be read."""
    if item.base is None:
        raise ValueError("only a file has columns to count")
    found: dict[str, Counter[Any]] = {column: Counter() for column in ([by] if by else _COLUMNS)}
    columns: dict[str, None] = {}
    rows = 0
    for row in open_source(item.config, item.base, "mixture").rows():
        if row.error is not None or not isinstance(row.value, dict):
            continue
        rows += 1
        if by:
            columns.update(dict.fromkeys(map(str, row.value)))
        for column, counts in list(found.items()):
            value = row.value.get(column)
            if value is None or value == "":
                continue
            if not isinstance(value, str | int) or (counts[value] == 0 and len(counts) >= _MOST):
                del found[column]
            else:
                counts[value] += 1
        if not found:
            break
    if by and not (found and found[by]):
        if by in columns:
            raise InputError(f"column {by!r} has more than {_MOST} values, or no plain ones", field="--by")
        near = did_you_mean(by, columns, otherwise=f"; there are {', '.join(list(columns)[:12])}")
        raise InputError(f"{item.path} has no column {by!r}{near}", field="--by")
    several = [(column, counts) for column, counts in found.items() if by or _names_datasets(counts)]
    return (*several[0], rows) if several else (None, Counter(), rows)


def _names_datasets(counts: Counter[Any]) -> bool:
    return sum(count >= _FEWEST for count in counts.values()) > 1
