"""`job.json`: what an executor did with a job. `merit status` reads it, and a restarted driver finds its jobs by it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from merit.base.errors import InputError
from merit.base.files import read_json, write_json

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class JobRecord:
    """One job, as its executor last saw it.

    Attributes:
        engine: `local`, `ray` or `slurm`.
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
