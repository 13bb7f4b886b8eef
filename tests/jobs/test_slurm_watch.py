"""How the driver watches Slurm's queue, on a queue of the test's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import job
from merit.config.launch import LaunchConfig, SlurmConfig
from merit.jobs.engine import QueuedJob
from merit.jobs.engines import slurm
from merit.jobs.job import End

EVERY = 5.0  # seconds between two looks at the queue
PASS = 0.5  # seconds between two passes over the jobs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds since some moment; `now` may be set."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(slurm, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_a_job_that_ends_beside_one_that_runs_is_noticed(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer of the queue is for all jobs, not for the first that asks."""
    names = ["long", "died", "last"]
    runs = {"0", "1", "2"}
    looks: list[float] = []

    def queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
        looks.append(clock.now)
        return {ident: QueuedJob("RUNNING", "None", "node1", over=False, waits=False) for ident in ids if ident in runs}

    monkeypatch.setattr(slurm, "read_queue", queue)
    monkeypatch.setattr(slurm, "_make_submitter", lambda *_: lambda commands: [*map(str, range(len(commands)))])
    launch = LaunchConfig(engine="slurm", slurm=SlurmConfig(poll_seconds=EVERY))
    backend = slurm.SlurmBackend(launch, tmp_path, 1)
    jobs = [job(tmp_path, name, "") for name in names]
    backend.start([(item, backend.slots()[0]) for item in jobs])
    ends: dict[str, tuple[End, float]] = {}
    for _ in range(60):
        clock.now += PASS
        for item in jobs:
            if item.name not in ends and (end := backend.poll(item)) is not None:
                ends[item.name] = end, clock.now
        if clock.now == 1010.0:
            runs -= {"1"}
        if clock.now == 1020.0:
            jobs[2].done.parent.mkdir()
            jobs[2].done.touch()
    assert ends.keys() == {"died", "last"}
    assert (ends["died"][0].kind, ends["last"][0].kind) == ("lost", "done")
    assert 1010.0 + EVERY < ends["died"][1] <= 1010.0 + 2 * EVERY + PASS  # not by the first answer without it
    assert ends["last"][1] <= 1020.0 + PASS
    assert len(looks) <= 60 * PASS / EVERY + 2
