"""The error family. Every error a user can cause is an `InputError` that says where: file, line, field."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_LONGEST = 1_000  # characters of a message, and of a file's or field's name
_MOST = 200  # lines of problems


class MeritError(Exception):
    """Base of all errors that merit raises on purpose. The CLI prints it on one line and exits with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        return _shown(super().__str__())


class InputError(MeritError):
    """Something the user gave is wrong. Exit code 2; nothing was written.

    Args:
        message: what is wrong and what to do about it, in one line.
        file: the file it is in, where there is one.
        line: the 1-based line in that file.
        field: the dotted name of the field (`train.learning_rate`, `messages[2].role`).
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.message = message
        self.file = str(file) if file is not None else None
        self.line = line
        self.field = field
        super().__init__(message)

    def __str__(self) -> str:
        place = _shown(self.file) if self.file else ""
        if self.line is not None:
            place += f":{self.line}" if place else f"line {self.line}"
        parts = [part for part in (place, f"`{_shown(self.field)}`" if self.field else "") if part]
        return ": ".join([*parts, _shown(self.message)])


class Problems(InputError):
    """Several `InputError`s at once, each on its own line; `merit check` and the config reader collect them all."""

    def __init__(self, problems: Sequence[InputError]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))

    def __str__(self) -> str:
        more = len(self.problems) - _MOST
        lines = [str(problem) for problem in self.problems[:_MOST]]
        return "\n".join([*lines, f"and {more:,} more problems"] if more > 0 else lines)


class StageError(MeritError):
    """A stage failed while it ran (a branch died, a disk filled up). Exit code 1; a rerun resumes."""


# What torch (CPU, CUDA), the C++ library, Python's threads and its loader of libraries say.
_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|[Cc]an(?:'t|not) allocate memory|bad_alloc|can't start new thread"
    r"|Failed to launch worker thread|failed to map segment|CUBLAS_STATUS_ALLOC_FAILED"
    r"|error return without exception set|without setting an exception"  # CPython without memory for an exception
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` or one of its causes says that memory ran out; few libraries raise a `MemoryError`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            return True
        # merit's errors and a parser's may quote the user's text, and the system's may quote a file name.
        if isinstance(seen, OSError) and seen.errno is not None:
            if seen.errno == errno.ENOMEM:
                return True
        elif not isinstance(seen, MeritError | ValueError) and _NO_MEMORY.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped, so that no input can control the user's terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shown(text: str) -> str:
    """`text` on one line and cut to a readable length: input may be a gigabyte long."""
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its class if there is no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "", cutoff: float = 0.6) -> str:
    """ "; did you mean `x`?" for the known name that is nearest to `name`; else `otherwise`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean `{near[0]}`?" if near else otherwise
