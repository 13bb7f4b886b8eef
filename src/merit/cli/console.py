"""The terminal: bars and messages on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from merit.base.errors import printable
from merit.base.progress import Bar, Progress

_PLAIN_SECONDS = 15
_SPEED_SECONDS = 300  # over which a job's speed is the mean: a machine that was busy an hour ago may be idle now
_PIPE_WIDTH = 200
_TABLE_WIDTH = 100  # of a table whose columns may go below it: what a mail, an issue or a split screen holds
_BAR_REST = 70  # characters of a bar's line besides the bar itself and its note
_BAR_LEAST = 6
_BAR_FIGURES = 46  # `200,000/1,204,000 tok, 381 tok/s 0:01:40 left`
_BAR_WIDE = 100  # a line with less shows no elapsed time
_BAR_TOLD = 1.0  # seconds: what took less leaves no line behind
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


class _Left(ProgressColumn):
    """The time that is left; nothing while nobody knows."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        return Text("" if seconds is None else f"{timedelta(seconds=int(seconds))} left", style="cyan")


class TerminalProgress:
    """Live bars with their rate and the time that is left, and a line for each that has ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        spare = max(0, stderr.width - _BAR_REST)
        width = max(_BAR_LEAST, min(28, spare // 2))
        wide = stderr.width >= _BAR_WIDE
        # A line that is too long takes it from the bar, the only column that may be narrower than what is in it.
        self._names = max(1, stderr.width - _BAR_FIGURES - width - wide * 8 - 3)  # with the notes
        self._name = Column(no_wrap=True, max_width=self._names)
        self._note = Column(no_wrap=True)
        self._progress = RichProgress(
            TextColumn("{task.description}", style="bold", markup=False, table_column=self._name),
            BarColumn(bar_width=width),
            _Amount(table_column=Column(no_wrap=True)),
            *([TimeElapsedColumn(table_column=Column(no_wrap=True))] if wide else []),
            _Left(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=self._note),
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
        number = self._progress.add_task(printable(name), total=total, note="", unit=unit)
        self._fit()
        yield _RichBar(self._progress, number)
        # Bars that have ended would soon fill the screen, and hide those that run.
        task = next((task for task in self._progress.tasks if task.id == number), None)
        if task is None:
            return
        self._progress.remove_task(number)
        self._fit()
        self._progress.refresh()
        if task.finished and (seconds := round(task.finished_time or 0.0)) >= _BAR_TOLD:
            amount = _amount(task.completed, task.total or 0, unit, task.finished_speed or task.speed)
            complain(f"{task.description}: {amount}, {timedelta(seconds=seconds)}")

    def _fit(self) -> None:
        """Gives the notes what the names leave."""
        longest = max((len(task.description) for task in self._progress.tasks), default=0)
        self._note.max_width = max(1, self._names - longest)


class _PlainBar:
    def __init__(self, name: str, total: float, unit: str) -> None:
        self._name, self._total, self._unit = printable(name), total, unit
        self._said = time.monotonic()
        self._past: deque[tuple[float, float]] = deque()  # times of the lines of late, and what was done then

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        if total and total != self._total:  # so far it waited, and its work was not known; rich does the same
            self._total = total
            self._past.clear()
        now = time.monotonic()
        if not self._past:
            self._past.append((now, done))  # a job that resumes does not start at 0
        while len(self._past) > 1 and now - self._past[1][0] >= _SPEED_SECONDS:
            self._past.popleft()
        since, before = self._past[0]
        if now - self._said < _PLAIN_SECONDS or done <= before:
            return
        self._said = now
        self._past.append((now, done))
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


def _is_screen(console: Console) -> bool:
    """Whether a person reads it. `is_terminal` says so of a log, too, where FORCE_COLOR is set."""
    return console.file.isatty()


def _in_notebook() -> bool:
    """Whether this is `!merit …` in a notebook. It has a terminal, but every frame of a bar would stay on the page."""
    launched = {"TERM": "xterm-color", "GIT_PAGER": "cat"}  # what ipykernel sets, whoever starts it
    return "JPY_PARENT_PID" in os.environ or all(os.environ.get(name) == value for name, value in launched.items())


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars for a person, lines for a log; merit's own messages go the same way."""
    show_messages()
    moving = _is_screen(stderr) and stderr.is_interactive and not _in_notebook()
    if not moving:
        for name in _OTHERS_BARS:
            os.environ.setdefault(name, "1")
    display = TerminalProgress() if moving else PlainProgress()
    with display.live() as progress:
        yield progress


def print_table(rows: list[list[str]], *, legend: Sequence[int] = ()) -> None:
    """A table on stdout; the first row is the header, the first column is text, the others are figures.

    What does not fit goes below the table, a line a row.

    Args:
        rows: cells, all strings.
        legend: columns that go below where the table would be wider than the terminal or than 100 characters, in the
            order in which they go. The others follow, from the right, where no word can be broken any more.
    """
    limit = min(stdout.width, _TABLE_WIDTH)
    if legend or _width(rows) > stdout.width:
        head = [_broken(title, [row[index] for row in rows[1:]]) for index, title in enumerate(rows[0])]
        rows = [head, *rows[1:]]
    below: list[int] = []
    while len(below) < len(legend) and _width(_without(rows, below)) > limit:
        below.append(legend[len(below)])
    for column in reversed(range(1, len(rows[0]))):
        if column not in below and _least_width(_without(rows, below)) > stdout.width:
            below.append(column)
    stdout.print(_table(_without(rows, below)))
    for row in rows[1:] if below else ():
        parts = (f"{rows[0][index]} {row[index]}".strip() for index in sorted(below) if row[index] not in ("", "–"))
        if told := ", ".join(" ".join(part.split()) for part in parts):
            say(f"  {row[0]}: {told}")


def _broken(title: str, cells: Sequence[str]) -> str:
    """The title of a column on several lines, where it is wider than all that is below it."""
    if len(title) <= max(_HEADER, *map(len, cells), 0):
        return title
    return "\n".join(textwrap.wrap(title, _HEADER, break_long_words=False, break_on_hyphens=False))


def _without(rows: list[list[str]], columns: Sequence[int]) -> list[list[str]]:
    return [[cell for index, cell in enumerate(row) if index not in columns] for row in rows]


def _width(rows: list[list[str]]) -> int:
    return Measurement.get(stdout, stdout.options.update(max_width=10 * _PIPE_WIDTH), _table(rows)).maximum


def _least_width(rows: list[list[str]]) -> int:
    """How narrow the table can be without breaking a word or a figure."""
    width = 0
    for index in range(len(rows[0])):
        parts = [
            part for row in rows for part in (row[index].split("\n") if _is_whole(rows, index) else row[index].split())
        ]
        width += max(map(cell_len, parts), default=0) + 2
    return width


def _is_whole(rows: list[list[str]], index: int) -> bool:
    """Whether no cell of a column may be broken: names and figures."""
    return index == 0 or all(_is_figure(row[index]) for row in rows[1:])


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
        figures = all(_is_figure(row[index]) for row in rows[1:])
        title = Text("\n".join(map(printable, cell.split("\n"))))
        table.add_column(title, justify="right" if figures else "left", no_wrap=_is_whole(rows, index))
    for row in rows[1:]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _is_figure(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "–-−."


def say(text: str) -> None:
    """Lines on stdout with control characters escaped; on a terminal they are broken between words."""
    _print(stdout, text)


def say_as_is(text: str) -> None:
    """Lines that somebody else wrote, on stdout: only control characters are escaped."""
    stdout.print(_lines(text), soft_wrap=True)


def say_json(value: Any) -> None:
    """JSON on stdout for scripts: one line of ASCII, so that it survives every terminal, pipe and locale."""
    stdout.print(Text(json.dumps(value, ensure_ascii=True, allow_nan=False)), soft_wrap=True)


def complain(text: str) -> None:
    """Lines on stderr, where bars may be live."""
    _print(stderr, text)


def _print(console: Console, text: str) -> None:
    if _is_screen(console):
        text = "\n".join(_broken_line(line, console.width) for line in text.split("\n"))
    console.print(_lines(text), soft_wrap=True)


def _broken_line(line: str, width: int) -> str:
    """A path stays whole, for copying."""
    indent = line[: len(line) - len(line.lstrip())]
    broken = textwrap.wrap(
        line, width, subsequent_indent=indent, replace_whitespace=False, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(broken)


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
