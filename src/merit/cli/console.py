"""The terminal: bars and messages on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from merit.base.errors import printable
from merit.base.progress import Bar, Progress

_PLAIN_SECONDS = 15
_PIPE_WIDTH = 200
_TABLE_WIDTH = 100  # of a table whose columns may go below it: what a mail, an issue or a split screen holds
_BAR_REST = 70  # characters of a bar's line besides the bar itself and its note
_BAR_LEAST = 6
_HEADER = 10  # a header is not broken to be narrower than this
_OTHERS_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # they would fill a log


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit by itself; how the program ends is main's business


# Names and messages come from files: no markup, no `:smile:` and no control character in them is ever obeyed.
# A pipe has no width: figures must not be cut to fit 80 columns. A closed stdout is None.
_WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else _PIPE_WIDTH
stdout = _Console(highlight=False, markup=False, emoji=False, width=_WIDTH)
stderr = _Console(stderr=True, highlight=False, markup=False, emoji=False)


class _RichBar:
    def __init__(self, progress: RichProgress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        self._progress.update(self._task, completed=done, total=total)
        if note is not None:
            self._progress.update(self._task, note=printable(note))


class _Amount(ProgressColumn):
    """How much is done, of how much, and how fast: `1,204/12,043 tok, 381 tok/s`."""

    def render(self, task: Task) -> Text:
        return Text(_amount(task.completed, task.total or 0, str(task.fields["unit"]), task.speed))


class TerminalProgress:
    """Live bars with their rate, elapsed and remaining time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        spare = max(0, stderr.width - _BAR_REST)
        self._progress = RichProgress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=max(_BAR_LEAST, min(28, spare // 2))),
            _Amount(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn(
                "{task.fields[note]}",
                style="dim",
                markup=False,
                table_column=Column(no_wrap=True, max_width=max(_BAR_LEAST, spare // 2)),
            ),
            console=stderr,
            transient=False,
            get_time=clock,
        )

    @contextlib.contextmanager
    def live(self) -> Iterator[Progress]:
        """Shows the bars while the context lasts."""
        with self._progress:
            yield self

    @contextlib.contextmanager
    def bar(self, name: str, *, total: float, unit: str = "") -> Iterator[Bar]:
        task = self._progress.add_task(printable(name), total=total, note="", unit=unit)
        yield _RichBar(self._progress, task)
        with contextlib.suppress(IndexError):
            self._progress.update(task, completed=self._progress.tasks[task].total)
            self._progress.stop_task(task)


class _PlainBar:
    def __init__(self, name: str, total: float, unit: str) -> None:
        self._name, self._total, self._unit = printable(name), total, unit
        self._said = time.monotonic()
        self._first: tuple[float, float] | None = None  # when the first news came, and how much was done then

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        self._total = total or self._total
        now = time.monotonic()
        since, before = self._first = self._first or (now, done)  # a job that resumes does not start at 0
        if now - self._said < _PLAIN_SECONDS or done <= before:
            return
        self._said = now
        speed = (done - before) / (now - since)
        left = timedelta(seconds=round((self._total - done) / speed))
        amount = _amount(done, self._total, self._unit, speed)
        complain(", ".join(filter(None, [f"{self._name}: {amount}", f"{left} left", printable(note or "")])))


class PlainProgress:
    """A line now and then, for logs and pipes."""

    @contextlib.contextmanager
    def live(self) -> Iterator[Progress]:
        yield self

    @contextlib.contextmanager
    def bar(self, name: str, *, total: float, unit: str = "") -> Iterator[Bar]:
        yield _PlainBar(name, total, unit)


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars for a person, lines for a log; merit's own messages go the same way."""
    show_messages()
    if not stderr.is_terminal:
        for name in _OTHERS_BARS:
            os.environ.setdefault(name, "1")
    display = TerminalProgress() if stderr.is_terminal else PlainProgress()
    with display.live() as progress:
        yield progress


def print_table(rows: list[list[str]], *, legend: Sequence[int] = ()) -> None:
    """A table on stdout; the first row is the header, the first column is text, the others are figures.

    Args:
        rows: cells, all strings.
        legend: columns that go below the table, a line a row, where it would be wider than the terminal or than 100
            characters; in the order in which they go.
    """
    below = 0
    if legend:
        limit = min(stdout.width, _TABLE_WIDTH)
        head = [_broken(title, [row[index] for row in rows[1:]]) for index, title in enumerate(rows[0])]
        rows = [head, *rows[1:]]
        while below < len(legend) and _width(_table(_without(rows, legend[:below]))) > limit:
            below += 1
    stdout.print(_table(_without(rows, legend[:below])))
    for row in rows[1:] if below else ():
        parts = (
            f"{rows[0][index]} {row[index]}".strip() for index in sorted(legend[:below]) if row[index] not in ("", "–")
        )
        say(f"  {row[0]}: {', '.join(parts)}")


def _broken(title: str, cells: Sequence[str]) -> str:
    """The title of a column on several lines, where it is wider than all that is below it."""
    if len(title) <= max(_HEADER, *map(len, cells), 0):
        return title
    return "\n".join(textwrap.wrap(title, _HEADER, break_long_words=False, break_on_hyphens=False))


def _without(rows: list[list[str]], columns: Sequence[int]) -> list[list[str]]:
    return [[cell for index, cell in enumerate(row) if index not in columns] for row in rows]


def _width(table: RichTable) -> int:
    return Measurement.get(stdout, stdout.options.update(max_width=_PIPE_WIDTH), table).maximum


def watch_tables(rows: Callable[[], list[list[str]]], seconds: float) -> None:
    """The table of `rows()`, again and again in place, until the user stops it."""
    with Live(_table(rows()), console=stdout, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(_table(rows()), refresh=True)


def _amount(done: float, total: float, unit: str, speed: float | None) -> str:
    """Work without a unit is a share, whose speed says nothing."""
    if not unit:
        return f"{done / total:.0%}" if total else ""
    text = f"{done:,.0f}/{total:,.0f} {unit}"
    if not speed:
        return text
    return f"{text}, {speed:,.3g} {unit}/s" if speed < 100 else f"{text}, {speed:,.0f} {unit}/s"


def _table(rows: list[list[str]]) -> RichTable:
    table = RichTable(header_style="bold", box=None, padding=(0, 1))
    for index, cell in enumerate(rows[0]):
        words = any(not _is_figure(row[index]) for row in rows[1:])
        title = Text("\n".join(map(printable, cell.split("\n"))))
        table.add_column(title, justify="left" if words else "right", no_wrap=index == 0)
    for row in rows[1:]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _is_figure(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "–-−."


def say(text: str) -> None:
    """Lines on stdout, not wrapped, with control characters escaped."""
    stdout.print(_lines(text), soft_wrap=True)


def say_json(value: Any) -> None:
    """JSON on stdout for scripts: one line of ASCII, so that it survives every terminal, pipe and locale."""
    stdout.print(Text(json.dumps(value, ensure_ascii=True, allow_nan=False)), soft_wrap=True)


def complain(text: str) -> None:
    """Lines on stderr, where bars may be live."""
    stderr.print(_lines(text), soft_wrap=True)


class _Handler(logging.Handler):
    """A line a message: rich's own handler pads and wraps them."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(printable(record.getMessage()))


def show_messages() -> None:
    """Shows merit's own messages on stderr."""
    if not logging.getLogger("merit").handlers:
        logger = logging.getLogger("merit")  # the root logger and other libraries' are never touched
        logger.addHandler(_Handler())
        logger.setLevel(logging.INFO)


def _lines(text: str) -> Text:
    return Text("\n".join(printable(line) for line in text.split("\n")))
