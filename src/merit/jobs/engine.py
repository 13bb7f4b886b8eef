"""An engine: where jobs run. It is one file that defines `ENGINE`.

merit's own engines lie in `merit.jobs.engines`, anyone's in `merit_ext/engines/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from merit.base import extensions
from merit.config.launch import LaunchConfig
from merit.jobs.drive import RetryPolicy
from merit.jobs.job import Executor, JobRecord


class QueuedJob(Protocol):
    """A job as a queue sees it: `over`, or it `waits` for a `reason`, or it runs on `nodes`."""

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def nodes(self) -> str: ...

    @property
    def over(self) -> bool: ...

    @property
    def waits(self) -> bool: ...


class Queue(Protocol):
    """A queue whose jobs go on when the process that started them has ended. Ids come from files: a stranger's, too.

    `title` is what the user calls it.
    """

    title: str

    def installed(self) -> bool:
        """Whether this machine can ask the queue."""
        ...

    def read(self, ids: Iterable[str]) -> Mapping[str, QueuedJob]:
        """Job id → job, of those that the queue still knows.

        Raises:
            StageError: the queue does not answer.
        """
        ...

    def cancel(self, ids: Iterable[str]) -> None:
        """Takes jobs out of the queue, running or not.

        Raises:
            StageError: the queue does not answer.
        """
        ...

    def end(self, ident: str) -> None:
        """Takes one job out of the queue, and returns when it has ended."""
        ...


@dataclass(frozen=True)
class Engine:
    """What a file of engines defines.

    Attributes:
        executor: (launch, policy, folder for files of the engine's own) → executor. Raises InputError where what the
            engine needs is not installed, or it refuses its options.
        about: what `merit env` says of the engine on this machine; which package is missing, for example.
        on_this_machine: whether jobs are processes of this machine, which share its files and devices.
        queue: of an engine whose jobs outlive the process that started them.
        settings: the model of `launch.settings.NAME`; None if the engine takes none.
    """

    executor: Callable[[LaunchConfig, RetryPolicy, Path], Executor]
    about: Callable[[], str]
    on_this_machine: bool = False
    queue: Queue | None = None
    settings: type[BaseModel] | None = None


def engine_named(name: str) -> Engine:
    """The engine of this name.

    Raises:
        InputError: there is none.
    """
    engine: Engine = extensions.load("engines", name)
    return engine


def make_executor(launch: LaunchConfig, policy: RetryPolicy, folder: Path) -> Executor:
    """The executor that the configuration asks for; `folder` is for files of the engine's own.

    Raises:
        InputError: what the engine needs is not installed, or the engine refuses its options.
    """
    return engine_named(launch.engine).executor(launch, policy, folder)


def queue_of(name: str) -> Queue | None:
    """The queue of the engine that a job's record names; None if it has none, or there is no such engine here."""
    return engine_named(name).queue if name in extensions.names("engines") else None


def release(record: Path) -> None:
    """Ends what an earlier driver left in a queue, before the job's files are touched."""
    known = JobRecord.load(record)
    queue = queue_of(known.engine) if known is not None and known.id else None
    if known is not None and queue is not None and queue.installed():
        queue.end(known.id)
