"""An engine: where jobs run. One file defines one engine, as `ENGINE`.

merit's own engines are in `merit.jobs.engines`, yours in `merit_ext/engines/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from merit.base import extensions
from merit.config.launch import LaunchConfig
from merit.jobs.drive import RetryPolicy
from merit.jobs.job import Executor, JobRecord


@dataclass(frozen=True)
class QueuedJob:
    """A job as its queue sees it.

    Attributes:
        state: in the queue's own words.
        reason: why it waits.
        nodes: where it runs.
        over: whether it has ended, however it ended.
        waits: whether it has not begun.
    """

    state: str
    reason: str
    nodes: str
    over: bool
    waits: bool


@dataclass(frozen=True)
class Queue:
    """A queue whose jobs go on after the process that started them has ended. Job ids are read from files, which may
    come from a stranger. `read`, `cancel` and `end` raise StageError if the queue does not answer.

    Attributes:
        title: what the user calls it.
        installed: whether this machine can ask the queue.
        read: job ids → {id: job}, of those that the queue still knows.
        cancel: takes jobs out of the queue, running or not.
        end: takes one job out of the queue, and returns when it has ended.
    """

    title: str
    installed: Callable[[], bool]
    read: Callable[[Iterable[str]], Mapping[str, QueuedJob]]
    cancel: Callable[[Iterable[str]], None]
    end: Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """What an engine's file defines.

    Attributes:
        executor: (launch, policy, folder for the engine's own files) → executor. Raises InputError if the engine is not
            installed or refuses its options.
        about: what `merit env` says about the engine on this machine, for example which package is missing.
        expect: (launch) prepares for jobs that will come soon, beside what this process does until then.
        on_this_machine: whether jobs are processes of this machine and share its files and devices.
        queue: its queue, if jobs outlive the process that started them.
        settings: the pydantic model of `launch.settings.NAME`; None if the engine takes no settings.
    """

    executor: Callable[[LaunchConfig, RetryPolicy, Path], Executor]
    about: Callable[[], str]
    expect: Callable[[LaunchConfig], None] = lambda _: None
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
    """The executor that the configuration asks for; `folder` is for the engine's own files.

    Raises:
        InputError: the engine is not installed, or it refuses its options.
    """
    return engine_named(launch.engine).executor(launch, policy, folder)


def queue_of(name: str) -> Queue | None:
    """The queue of the engine that a job's record names; None if it has no queue, or this merit has no such engine."""
    return engine_named(name).queue if name in extensions.names("engines") else None


def release(record: Path) -> None:
    """Ends the job that an earlier driver left in a queue. Call it before you touch the job's files."""
    known = JobRecord.load(record)
    queue = queue_of(known.engine) if known is not None and known.id else None
    if known is not None and queue is not None and queue.installed():
        queue.end(known.id)
