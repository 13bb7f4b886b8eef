"""Placing jobs on unequal machines, and the loop in virtual time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from merit.base.errors import StageError
from merit.jobs.drive import Drive, RetryPolicy, Slot, move, place
from merit.jobs.job import End, Job

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fleet import simulate


@pytest.mark.parametrize(
    ("waiting", "busy", "speeds", "expected"),
    [
        ([1, 3, 2], [None, None], [1, 1], [(1, 0), (2, 1)]),  # longest first
        ([4, 9], [None, None], [1, 3], [(1, 1), (0, 0)]),  # the longest on the fastest
        ([6], [None, 1], [1, 10], []),  # worth waiting for the fast one
        ([6], [None, 100], [1, 10], [(0, 0)]),
        ([6, 6], [None, 1], [1, 10], []),  # both wait: 0.1 + 0.6 + 0.6 is less than 6
        ([], [None], [1], []),
        ([1], [], [], []),
        ([1], [5], [1], []),
    ],
)
def test_place(waiting, busy, speeds, expected):
    assert place(waiting, busy, speeds) == expected


def test_something_starts_whenever_nothing_runs():
    for speeds in ([1], [0.1, 5], [3, 2, 1]):
        assert place([7.0], [None] * len(speeds), speeds) == [(0, max(range(len(speeds)), key=lambda i: speeds[i]))]


@pytest.mark.parametrize(
    ("busy", "speeds", "loss", "expected"),
    [
        ([10, None], [1, 4], [1, 0], (0, 1)),
        ([10, None], [1, 4], [50, 0], None),  # too much to do again
        ([10, None], [1, 1], [0, 0], None),  # not faster
        ([10, 8, None], [1, 0.5, 4], [0, 0, 0], (1, 2)),  # what would end last goes first
        ([None, None], [1, 2], [0, 0], None),
    ],
)
def test_move(busy, speeds, loss, expected):
    assert move(busy, speeds, loss) == expected


def test_a_fleet_of_spot_machines_finishes_near_the_bound():
    found = simulate(branches=64, preemptions=0.1, seed=0)
    assert found["lost"] > 10  # machines did go away
    assert found["over_bound"] <= 1.15


class Script:
    """An engine that ends each start of a job as told."""

    engine = "script"

    def __init__(self, ends: list[End], slots: int = 1) -> None:
        self.ends, self.clock, self.started, self.closed = ends, 0.0, [], None
        self._slots = [Slot("pool", index) for index in range(slots)]

    def slots(self):
        return self._slots

    def start(self, placed):
        self.started += [job.name for job, _ in placed]

    def poll(self, job):
        return self.ends.pop(0) if self.ends else None

    def state(self, job):
        return {}

    def about(self, job):
        return "7", "here"

    def end(self, job):
        pass

    def close(self, cancel):
        self.closed = cancel

    def pause(self):
        self.clock += 1

    def now(self):
        return self.clock


JOB = Job("a", (), Path("DONE"), Path("progress"), Path("output.txt"))
LOST, DIED, DONE = End("lost", None, "node gone"), End("died", 1, "oops"), End("done", 0)


def test_losing_a_machine_is_not_dying():
    engine = Script([LOST] * 5 + [DIED, DONE])
    Drive(engine, RetryPolicy(retries=1, preemption_retries=5)).run([JOB])
    assert engine.started == ["a"] * 7
    assert engine.closed is False


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([LOST, LOST], "a failed (node gone); see output.txt"),
        ([DIED, DIED], "a failed (exit code 1): oops; see output.txt"),
    ],
)
def test_too_often(ends, message):
    with pytest.raises(StageError) as caught:
        Drive(Script(ends), RetryPolicy(retries=1, preemption_retries=1)).run([JOB])
    assert str(caught.value) == message


def test_cancelled(tmp_path):
    from dataclasses import replace

    from merit.jobs.job import JobRecord

    engine = Script([])
    policy = RetryPolicy(stop=lambda: "cancelled; run again to resume" if engine.clock > 3 else None)
    job = replace(JOB, record=tmp_path / "job.json")
    with pytest.raises(StageError, match="cancelled; run again to resume"):
        Drive(engine, policy).run([job])
    assert engine.closed is True
    record = JobRecord.load(job.record)
    assert record is not None
    assert (record.engine, record.state, record.id, record.where, record.attempt) == (
        "script",
        "cancelled",
        "7",
        "here",
        1,
    )
