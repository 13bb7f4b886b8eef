"""Jobs on this machine: order, retries, messages of failures, environments, and that none outlives its parent."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from merit.base import machine
from merit.base.errors import InputError, StageError
from merit.base.machine import gpu_names, slot_environments, usable_cores, visible_gpus
from merit.jobs.drive import RetryPolicy
from merit.jobs.engines.local import LocalExecutor
from merit.jobs.job import Job
from merit.jobs.process import job_lock

HEAD = "import json, os, signal, sys, time\nfrom pathlib import Path\nhere = Path(sys.argv[1])\n"
DONE = "(here / 'DONE').touch()\n"


def job(folder: Path, name: str, program: str, *, weight: float = 1.0, env: dict[str, str] | None = None) -> Job:
    """A job that runs `program`, which knows its folder as `here`."""
    here = folder / name
    return Job(
        name=name,
        command=(sys.executable, "-c", HEAD + program, str(here)),
        done=here / "DONE",
        progress=here / "progress.json",
        output=here / "output.txt",
        weight=weight,
        env=env or {},
    )


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "order.txt"


def logged(log: Path) -> str:
    return f"with open({str(log)!r}, 'a') as handle: handle.write(here.name + ' ')\n"


def test_the_longest_starts_first_and_what_is_done_is_left_alone(tmp_path, log):
    jobs = [job(tmp_path, name, logged(log) + DONE, weight=weight) for name, weight in (("a", 1), ("b", 5), ("c", 3))]
    skipped = job(tmp_path, "d", logged(log), weight=9)
    skipped.done.parent.mkdir()
    skipped.done.touch()
    LocalExecutor(parallel=1).run([*jobs, skipped])
    assert log.read_text().split() == ["b", "c", "a"]
    assert all(item.done.exists() for item in jobs)


def test_as_many_at_once_as_there_are_slots(tmp_path):
    """Two that wait for each other."""
    other = "while not all((here.parent / name / 'here').exists() for name in 'ab'): time.sleep(0.01)\n"
    meet = "(here / 'here').touch()\n" + other + DONE
    started = time.monotonic()
    LocalExecutor(parallel=2).run([job(tmp_path, name, meet) for name in "ab"])
    assert time.monotonic() - started < 20


def test_a_job_that_dies_starts_again(tmp_path, log, caplog):
    died_once = (
        f"{logged(log)}if open({str(log)!r}).read().count(here.name) < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with caplog.at_level(logging.WARNING, logger="merit"):
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=2)).run([job(tmp_path, "a", died_once + DONE)])
    assert log.read_text().split() == ["a"] * 3
    assert caplog.messages == ["a died (SIGKILL, perhaps out of memory); it starts again and resumes"] * 2


def test_a_job_that_fails_for_good(tmp_path, log):
    bad = logged(log) + "sys.stderr.write('one\\ntwo \\x1b[2J\\n'); sys.exit(1)\n"
    good = job(tmp_path, "good", logged(log) + DONE, weight=0.1)
    with pytest.raises(StageError) as caught:
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=1)).run([job(tmp_path, "bad", bad), good])
    path = tmp_path / "bad" / "output.txt"
    assert str(caught.value) == f"bad failed (exit code 1): two \\x1b[2J; see {path}"
    # It was given its second chance, and the other job was still run.
    assert log.read_text().split() == ["bad", "bad", "good"]
    assert path.read_text().count("one") == 2
    assert good.done.exists()


def test_bad_input_is_not_tried_again(tmp_path, log):
    bad = job(tmp_path, "bad", logged(log) + "sys.stderr.write('spec.json: wrong\\n'); sys.exit(2)\n")
    with pytest.raises(InputError, match=r"bad failed \(exit code 2\): spec\.json: wrong; see"):
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=5)).run([bad])
    assert log.read_text().split() == ["bad"]


@pytest.mark.parametrize(
    "words",
    [
        "OSError: [Errno 28] No space left on device",
        "SafetensorError: I/O error: No space left on device (os error 28)",
        "/r: the disk is full; free some space and run again to resume",
        "RuntimeError: [enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0",
    ],
)
def test_a_full_disk_is_not_tried_again(words, tmp_path, log):
    full = job(tmp_path, "full", logged(log) + f"sys.stderr.write({words!r}); sys.exit(1)\n")
    with pytest.raises(StageError) as caught:
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=5)).run([full])
    assert str(caught.value) == "full: the disk is full; free some space and run again to resume"
    assert log.read_text().split() == ["full"]


def test_the_words_of_an_earlier_start_explain_nothing(tmp_path):
    silent = job(tmp_path, "a", "sys.exit(3)\n")
    silent.output.parent.mkdir()
    silent.output.write_text("No space left on device\n")
    with pytest.raises(StageError, match=r"^a failed \(exit code 3\); see "):
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=0)).run([silent])


def test_several_failures_come_together(tmp_path):
    jobs = [job(tmp_path, "a", "sys.exit(2)"), job(tmp_path, "b", "os.kill(os.getpid(), signal.SIGSEGV)")]
    with pytest.raises(StageError, match=r"a failed \(exit code 2\); see .*; b failed \(SIGSEGV\); see"):
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=0)).run(jobs)


def test_exit_0_without_the_marker_is_a_failure(tmp_path):
    with pytest.raises(StageError, match=r"a failed \(exit code 0\)"):
        LocalExecutor(parallel=1, policy=RetryPolicy(retries=1)).run([job(tmp_path, "a", "pass")])


def test_a_marker_counts_whatever_the_exit_code(tmp_path):
    LocalExecutor(parallel=1, policy=RetryPolicy(retries=0)).run([job(tmp_path, "a", DONE + "sys.exit(1)")])


class Bars:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float | None, str | None]] = []
        self.units: dict[str, str] = {}

    def bar(self, name, *, total, unit=""):
        import contextlib

        self.units[name] = unit
        seen = self.seen

        class Bar:
            def update(self, done, *, total=None, note=None):
                seen.append((name, done, total, note))

        return contextlib.nullcontext(Bar())


def test_progress_is_shown_and_half_written_progress_is_passed_over(tmp_path):
    program = (
        "(here / 'progress.json').write_text('{\"done\": 1, ')\ntime.sleep(0.5)\n"
        "(here / 'progress.json').write_text(json.dumps({'done': 3, 'total': 7, 'note': 'loss 1'}))\ntime.sleep(0.7)\n"
    )
    bars = Bars()
    measuring = dataclasses.replace(job(tmp_path, "a", program + DONE), unit="tok")
    LocalExecutor(parallel=1).run([measuring, job(tmp_path, "b", DONE)], bars)
    assert ("a", 3, 7, "loss 1") in bars.seen
    assert bars.units == {"a": "tok", "b": "step"}
    assert {entry[1] for entry in bars.seen if entry[0] == "a"} == {3, 7}  # what it said, and that it is done


def test_what_a_job_is_given(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    program = (
        "keys = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'MERIT_PARENT', 'MINE')\n"
        "(here / 'env.json').write_text(json.dumps([{key: os.environ[key] for key in keys}, sys.stdin.read()]))\n"
    )
    LocalExecutor(parallel=1).run([job(tmp_path, "a", program + DONE, env={"MINE": "x"})])
    env, read = json.loads((tmp_path / "a" / "env.json").read_text())
    assert env == {
        "OMP_NUM_THREADS": str(usable_cores()),
        "OMP_WAIT_POLICY": "passive",
        "MERIT_PARENT": str(os.getpid()),
        "MINE": "x",
    }
    assert read == ""


@pytest.mark.parametrize(
    ("parallel", "gpus", "cores", "threads", "devices"),
    [
        (None, [], 8, ["8"], [None]),
        (2, [], 8, ["4", "4"], [None, None]),
        (3, [], 8, ["2", "2", "2"], [None, None, None]),
        (4, [], 2, ["1", "1", "1", "1"], [None] * 4),
        (None, ["0", "1"], 8, ["4", "4"], ["0", "1"]),
        (1, ["0", "1"], 8, ["8"], ["0"]),
        (3, ["GPU-a", "GPU-b"], 9, ["3", "3", "3"], ["GPU-a", "GPU-b", "GPU-a"]),
    ],
)
def test_slots(parallel, gpus, cores, threads, devices, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    slots = slot_environments(parallel, gpus, cores)
    assert [slot["OMP_NUM_THREADS"] for slot in slots] == threads
    assert [slot["MKL_NUM_THREADS"] for slot in slots] == threads
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == devices


@pytest.mark.parametrize(("asked", "threads"), [("3", "3"), ("16", "8"), ("", "8"), ("two", "8"), ("0", "8")])
def test_the_users_own_threads_and_waiting_hold_for_jobs(asked, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert slot_environments(None, [], 8) == [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}]


def test_threads_that_are_to_wait_passively_spin_a_moment_before_they_sleep(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    [slot] = slot_environments(None, [], 2)
    assert (slot["OMP_WAIT_POLICY"], slot["GOMP_SPINCOUNT"]) == ("passive", "20000")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    [slot] = slot_environments(None, [], 2)
    assert "GOMP_SPINCOUNT" not in slot  # the job inherits the user's


def test_cores_that_others_keep_busy(tmp_path, monkeypatch):
    """For a tenth of a second one core worked, another for half of it, one nicely, and one that is not ours."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 3})
    now, stat, tick = [0.0], tmp_path / "stat", os.sysconf("SC_CLK_TCK") // 10
    monkeypatch.setattr("merit.base.machine.time", SimpleNamespace(process_time=lambda: 0, perf_counter=lambda: now[0]))
    lines = "cpu 9 9 9 9\ncpu0 {} 0 0 5\ncpu1 {} 0 0 5\ncpu2 0 0 {} 5\ncpu3 0 {} 0 5\n\nintr 1\n"
    stat.write_text(lines.format(0, 0, 0, 0))

    def sleep(seconds: float) -> None:
        now[0] += seconds
        stat.write_text(lines.format(tick, tick, tick // 2, tick))

    machine.time.sleep = sleep
    assert machine.busy_elsewhere(0.1, stat) == pytest.approx(1.5)
    assert machine.busy_elsewhere(0.1, tmp_path / "none") == 0
    stat.write_text("cpu0 nonsense\n")
    assert machine.busy_elsewhere(0.1, stat) == 0


@pytest.mark.parametrize(
    ("value", "expected"), [("0,2", ["0", "2"]), (" 1 ", ["1"]), ("", []), ("-1", []), ("GPU-abc", ["GPU-abc"])]
)
def test_visible_gpus(value, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == expected


def test_gpus_as_the_driver_lists_them(tmp_path, monkeypatch):
    lines = [
        "GPU 0: NVIDIA H200 (UUID: GPU-1)",
        "  MIG 1g.18gb Device 0: (UUID: MIG-2)",
        "GPU 1: NVIDIA L4 (UUID: GPU-3)",
    ]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_names() == ["NVIDIA H200", "NVIDIA L4"]
    assert visible_gpus() == ["0", "1"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# A job that starts a helper of its own, and a run that starts the job.
FAMILY = """
import subprocess, sys, time
from pathlib import Path
from merit.jobs.job import Job
from merit.jobs.engines.local import LocalExecutor
here = Path(sys.argv[1])
program = '''
import os, subprocess, sys, time
from pathlib import Path
from merit.jobs.drive import RetryPolicy
from merit.jobs.process import die_with_parent
die_with_parent()
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1], "pids.part").write_text(f"{os.getpid()} {helper.pid}")
Path(sys.argv[1], "pids.part").rename(Path(sys.argv[1], "pids"))
time.sleep(600)
'''
job = Job("a", (sys.executable, "-c", program, str(here)), here / "DONE", here / "p", here / "o")
LocalExecutor(parallel=1).run([job])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_jobs_and_what_they_started_end_with_their_parent(number, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_job_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("merit.jobs.process._PATIENCE_SECONDS", 0.5)
    stubborn = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    )

    def interrupt(_seconds: float) -> None:
        if (tmp_path / "a" / "pid").exists() and (tmp_path / "a" / "pid").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr("merit.jobs.engines.local.time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(parallel=1).run([job(tmp_path, "a", stubborn)])
    assert not alive(int((tmp_path / "a" / "pid").read_text()))


def test_the_lock_of_a_job(tmp_path):
    path = tmp_path / "branch" / "lock"
    busy = pytest.raises(StageError, match="another process works on this job")
    with job_lock(path), busy, job_lock(path, wait_seconds=0):
        pass
    with job_lock(path, wait_seconds=0):
        pass


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    """The first asks the jobs to end, and waits for them."""
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / 'pid').write_text(str(os.getpid()))\n"
    marker = tmp_path / "a" / "pid"
    presses = []

    def press(number, frame):
        presses.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 1.5, 1.0)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            LocalExecutor(parallel=1).run([job(tmp_path, "a", stubborn + "time.sleep(600)")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(presses) >= 2
    assert time.monotonic() - started < 8
    assert not alive(int(marker.read_text()))
