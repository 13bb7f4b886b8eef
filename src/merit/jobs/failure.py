"""What is said about jobs that failed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.jobs.job import BAD_INPUT, End, Job

_TAIL = 10_000  # bytes of output in which the last line is looked for
# What Python, Rust's safetensors and PyTorch's writer say last of a full disk.
_FULL_DISK = re.compile(r"No space left on device|os error 28|disk is full|Disk quota exceeded|unexpected pos \d+ vs")


@dataclass(frozen=True)
class Failure:
    """A start of a job that did not end well."""

    job: Job
    end: End

    @property
    def disk_full(self) -> bool:
        return self.end.code != BAD_INPUT and _FULL_DISK.search(self.end.said) is not None

    @property
    def may_pass(self) -> bool:
        """Whether another start may go better."""
        return self.end.code != BAD_INPUT and not self.disk_full

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        if self.end.code is None:
            return self.end.said or "no exit code"
        return meaning(self.end.code)

    @property
    def line(self) -> str:
        if self.disk_full:
            return f"{self.job.name}: the disk is full; free some space and run again to resume"
        said = f": {self.end.said}" if self.end.said and self.end.code is not None else ""
        return f"{self.job.name} failed ({self.reason}){said}; see {self.job.output}"


def failed_jobs(failures: Sequence[Failure]) -> StageError | InputError:
    """One error for all of them."""
    kind = InputError if all(item.end.code == BAD_INPUT for item in failures) else StageError
    return kind("; ".join(item.line for item in failures))


def last_line(output: Path, after: int = 0) -> str:
    """The last line of a job's output, of what it printed beyond byte `after`: an earlier start explains nothing."""
    with contextlib.suppress(OSError), output.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(after, size - _TAIL))
        lines = handle.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""
    return ""


def meaning(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"signal {-code}"
