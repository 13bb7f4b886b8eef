"""A job: a command and a marker; how it ended, what its executor notes of it and promises about it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from merit.base.errors import InputError, StageError
from merit.base.files import read_json, write_json
from merit.base.progress import SILENT, Progress

BAD_INPUT = 2  # exit code of a job that will fail the same way again
State = Literal["queued", "running", "done", "failed", "cancelled"]
_TAIL = 10_000  # bytes of output in which the last line is looked for
# What Python, Rust's safetensors and PyTorch's writer say last of a full disk.
_FULL_DISK = re.compile(r"No space left on device|os error 28|disk is full|Disk quota exceeded|unexpected pos \d+ vs")


@dataclass(frozen=True)
class Job:
    """One command that leaves a marker file when it is whole. Starting it again is always safe: it resumes.

    Attributes:
        name: what the user sees (`merit branch 2`).
        command: the argument list. This process's own interpreter stands for that of the machine it runs on.
        done: exists exactly when the job has finished; written last, by the job.
        progress: JSON {"done", "total", "note"} that the job rewrites while it runs.
        output: file that gets stdout and stderr.
        unit: what "done" counts, for the bar (`step`, `tok`).
        weight: expected work, in any unit; the longest job starts first, on the fastest machine.
        env: variables added to the environment.
        record: where the executor notes what it did with the job (a JobRecord); None for nowhere.
    """

    name: str
    command: tuple[str, ...]
    done: Path
    progress: Path
    output: Path
    unit: str = "step"
    weight: float = 1.0
    env: dict[str, str] = field(default_factory=dict)
    record: Path | None = None


@dataclass(frozen=True)
class End:
    """How one start of a job ended.

    Attributes:
        kind: `done`; `died` of its own (an error, out of memory); `lost` with its machine, or preempted.
        code: exit code, negative for a signal; None where nobody knows it.
        said: the last line that it printed, or what the engine says about it.
    """

    kind: Literal["done", "died", "lost"]
    code: int | None = None
    said: str = ""


class Executor(Protocol):
    """Starts jobs somewhere and watches them. Knows nothing of models."""

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end. When one fails for good, the others still finish.

        Raises:
            StageError: names each job that failed, and the end of what it printed.
            InputError: the same, when bad input was the cause; or the engine cannot be used as configured.
        """


@dataclass(frozen=True)
class JobRecord:
    """One job, as its executor last saw it.

    Attributes:
        engine: its name, as in `launch.engine`.
        state: `queued` on the engine counts as not begun.
        id: the engine's own name of the job (a process, a Slurm job id).
        where: pool or machine.
        attempt: how often it was started, this time included.
        said: why it failed.
        time: of this note, Unix seconds.
    """

    engine: str
    state: State
    id: str = ""
    where: str = ""
    attempt: int = 1
    said: str = ""
    time: float = 0.0

    def save(self, path: Path | None) -> None:
        """Writes the note; nowhere if `path` is None."""
        if path is not None:
            write_json(path, asdict(self) | {"time": round(time.time(), 3)})

    @classmethod
    def load(cls, path: Path | None) -> JobRecord | None:
        """The note at `path`, or None if there is none that can be read."""
        if path is None:
            return None
        with contextlib.suppress(InputError, ValidationError):
            return TypeAdapter(cls).validate_python(read_json(path))
        return None


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
