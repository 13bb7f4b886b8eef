"""`merit`: every command, and how errors and signals leave the program."""

from __future__ import annotations

import contextlib
import errno
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from merit.base.errors import MeritError, out_of_memory, printable
from merit.base.files import disk_is_full
from merit.base.machine import wait_passively

# Group of the help → the module of `merit.cli` with its commands, and their names. A module is imported when one of its
# commands is called, or for the help.
GROUPS = {
    "Run": ("run_commands", ("demo", "run", "push")),
    "Stages": (
        "stage_commands",
        ("prepare", "conflict", "split", "train", "merge", "evaluate", "diagnose", "report"),
    ),
    "Inspect": ("inspect_commands", ("compare", "theory", "agree", "study", "advise", "benchmark")),
    "Prepare a run": ("setup_commands", ("init", "check", "plan", "schema")),
    "Branches": ("branch_commands", ("status", "logs", "cancel", "handover", "adopt", "add", "remove")),
    "This machine": ("setup_commands", ("env", "doctor")),
}
_MODULES = {name: module for module, names in GROUPS.values() for name in names}


class _Commands(TyperGroup):
    """The commands of `GROUPS`, each imported when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(_MODULES)  # type: ignore[assignment]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        single = typer.Typer(add_completion=False, context_settings=_SETTINGS, rich_markup_mode=None)
        single.command(cmd_name)(_function(cmd_name))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, (_, names) in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:9}", inspect.cleandoc(_function(name).__doc__ or "")) for name in names])


def _function(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"merit.cli.{_MODULES[name]}"), name)
    return found


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    name="merit",
    cls=_Commands,
    help="Split an instruction mixture by gradient conflict, tune the groups apart, merge once, and see if it helped.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)


@app.callback()
def _root() -> None:
    """Makes the program a group of commands; typer makes none where no command is registered."""


# typer brings its own copy of click since 0.26; the class of wrong options is reached the same way in both.
_USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# A disk that fails or went away, or too many open files: no mistake of the user's, and none of ours.
_FAILING = (
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
)
_NO_MEMORY = (
    "out of memory; free some, or lower `train.micro_batch_tokens` or `calibration.batch_tokens`, "
    "and run again to resume"
)
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks us to end. No `except Exception` on the way swallows it, and every `finally` ends its jobs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """The program. Exit codes: 0 done, 1 failed (run again to resume), 2 bad input, 128 + n ended by signal n."""
    for number in _STOPS:
        # A signal that is ignored (`nohup`, a job in the background) stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where the stream is closed
            stream.reconfigure(errors="backslashreplace")
    # For what engines and libraries start as `python -m`: the current folder may hold a stranger's `torch.py`.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    wait_passively()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command. Returns the exit code."""
    return answer(lambda: app(arguments or ["--help"], prog_name="merit", standalone_mode=False))


def answer(action: Callable[[], Any]) -> int:
    """Does `action`; what goes wrong becomes one line on stderr. Returns the exit code, which may be `action`'s own."""
    try:
        code = action()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MeritError as error:
        return _say(_NO_MEMORY, 1) if out_of_memory(error) else _say(str(error), error.exit_code)
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx is not None else "merit"
        return _say(f"{command}: {printable(error.format_message())}; see `{command} --help`", 2)
    except Stopped as stop:
        return _say(_farewell(stop.number), 128 + stop.number)
    except BrokenPipeError:
        # The reader has seen enough (`merit schema | head -1`). What is left in the buffer must not fail again at exit.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        place = printable(str(error.filename or "output"))
        if disk_is_full(error):
            return _say(f"{place}: the disk is full; free some space and run again to resume", 1)
        if out_of_memory(error):
            return _say(_NO_MEMORY, 1)
        if error.errno in _UNUSABLE:
            return _say(f"{place}: {error.strerror}", 2)
        if error.errno in _FAILING:
            return _say(f"{place}: {error.strerror}; run again to resume", 1)
        raise
    except (MemoryError, RuntimeError, ImportError, SystemError) as error:
        if not out_of_memory(error):
            raise
        return _say(_NO_MEMORY, 1)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _farewell(number: int) -> str:
    what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{what}; run the same command again to resume"


def _say(text: str, code: int) -> int:
    if sys.stdout is not None:  # what was printed before comes first: a job's last line is its reason
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    if sys.stderr is not None:
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.write(f"{text}\n")
    return code
