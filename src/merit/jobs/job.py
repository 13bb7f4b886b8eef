"""A job: a command that leaves a marker file; how one start of it ended; the record that its executor keeps."""

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
# The last line of Python, of Rust's safetensors and of PyTorch's writer when the disk is full.
_FULL_DISK = re.compile(r"No space left on device|os error 28|disk is full|Disk quota exceeded|unexpected pos \d+ vs")


@dataclass(frozen=True)
class Job:
    """One command that leaves a marker file when it has finished. It is always safe to start it again: it resumes.

    Attributes:
        name: what the user sees (`merit branch 2`).
        command: the argument list. Where this process's interpreter is named, the other machine uses its own.
        done: exists exactly when the job has finished; written last, by the job.
        progress: JSON {"done", "total", "note"} that the job rewrites while it runs.
        output: the file for stdout and stderr.
        unit: what "done" counts, for the bar (`step`, `tok`).
        weight: expected work, in any unit. The longest job starts first, on the fastest machine.
        env: variables added to the environment.
        record: where the executor keeps a JobRecord; None: nowhere.
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
        kind: `done`; `died` by itself (an error, out of memory); `lost`: its machine went away, or it was preempted;
            `cancelled`: somebody took it out of the engine's queue.
        code: exit code, negative for a signal; None if unknown.
        said: the last line that it printed, or what the engine says about it.
    """

    kind: Literal["done", "died", "lost", "cancelled"]
    code: int | None = None
    said: str = ""


class Executor(Protocol):
    """Starts jobs and watches them. It knows nothing about models."""

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end. If one fails for good, the others still finish.

        Raises:
            StageError: jobs failed; names each, and the last line that it printed.
            InputError: the same, where bad input was the cause; or the engine cannot be used as configured.
        """


@dataclass(frozen=True)
class JobRecord:
    """`job.json`: one job, as its executor last saw it. `merit status` reads it, and a new driver finds its jobs by it.

    Attributes:
        engine: its name, as in `launch.engine`.
        state: `queued` includes jobs that wait in the engine's own queue.
        id: the engine's name for the job (a process id, a Slurm job id).
        where: pool or machine.
        attempt: how many times it has been started.
        said: why it failed.
        time: when this was written, Unix seconds.
    """

    engine: str
    state: State
    id: str = ""
    where: str = ""
    attempt: int = 1
    said: str = ""
    time: float = 0.0

    def save(self, path: Path | None) -> None:
        """Writes the record, unless `path` is None."""
        if path is not None:
            write_json(path, asdict(self) | {"time": round(time.time(), 3)})

    @classmethod
    def load(cls, path: Path | None) -> JobRecord | None:
        """The record at `path`; None if there is none, or it cannot be read."""
        if path is None:
            return None
        with contextlib.suppress(InputError, ValidationError):
            return TypeAdapter(cls).validate_python(read_json(path))
        return None


@dataclass(frozen=True)
class Failure:
    """A start of a job that failed."""

    job: Job
    end: End

    @property
    def disk_full(self) -> bool:
        return self.end.code != BAD_INPUT and _FULL_DISK.search(self.end.said) is not None

    @property
    def may_pass(self) -> bool:
        """Whether another start may succeed, and nobody minds."""
        return self.end.kind != "cancelled" and self.end.code != BAD_INPUT and not self.disk_full

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
    """The last line of a job's output after byte `after`, where its latest start began to print; empty if none."""
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
