"""A job, and what every executor promises about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from merit.base.progress import SILENT, Progress

BAD_INPUT = 2  # exit code of a job that will fail the same way again


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
