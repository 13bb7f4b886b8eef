"""Jobs that are forked from a process that has done their imports: no difference to those that start by themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from merit import pipeline
from merit.base.machine import merit_command
from merit.cli.run_commands import JOBS_IMPORT
from merit.context import RunContext
from merit.jobs import nursery
from merit.jobs.engines.local import LocalExecutor
from merit.jobs.job import Job
from merit.jobs.nursery import Nursery
from merit.jobs.process import start_process, stop_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands over a child")

# `merit PROGRAM` runs a program of the test, in a process that is set up for merit.
INSTEAD = """
import sys
import merit.cli.main
def main():
    exec(compile(sys.argv[1], "program", "exec"), {"__name__": "program"})
    sys.exit(0)
merit.cli.main.main = main
"""
HEAD = "import json, os, signal, sys, time\nfrom pathlib import Path\n"


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    """Variables with which a nursery finds the module `instead`; this process has them, too."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "instead.py").write_text(INSTEAD)
    path = os.pathsep.join(filter(None, (str(tmp_path / "modules"), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv(nursery.OFF, raising=False)
    return dict(os.environ)


@pytest.fixture
def ours(environment, monkeypatch):
    """This process's nursery, for jobs of which `environment` is all that they get."""
    found = Nursery(["instead"], environment)
    monkeypatch.setattr(nursery, "_ours", found)
    yield found
    found.close()


def job(folder: Path, program: str, **more) -> Job:
    return Job(
        name=folder.name,
        command=tuple(merit_command(HEAD + program)),
        done=folder / "DONE",
        progress=folder / "progress.json",
        output=folder / "output.txt",
        **more,
    )


def test_what_a_forked_job_is_given(tmp_path, ours, monkeypatch):
    program = (
        "found = {'parent': os.getppid(), 'leads': os.getpid() == os.getpgrp() == os.getsid(0)}\n"
        "found |= {'stdin': sys.stdin.read(), 'cwd': os.getcwd(), 'env': dict(os.environ)}\n"
        "found |= {'files': sorted(os.listdir('/proc/self/fd'))[:-1]}\n"
        "print(json.dumps(found))\nprint('a last word', file=sys.stderr)\nsys.exit(3)"
    )
    item = job(tmp_path / "a", program)
    item.output.parent.mkdir()
    item.output.write_text("of before\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")  # as scikit-learn does when it is imported
    started = start_process(item, item.command, {})
    assert isinstance(started.process, nursery.Forked)
    assert started.process.wait(30) == 3
    assert started.process.poll() == 3
    before, *lines = item.output.read_text().splitlines()
    found = json.loads(next(line for line in lines if line.startswith("{")))
    assert before == "of before"
    assert "a last word" in lines
    assert found["parent"] == os.getpid()
    assert found["leads"]
    assert found["stdin"] == ""
    assert found["cwd"] == str(tmp_path / "elsewhere")
    found["env"].pop("LC_CTYPE", None)  # Python itself sets it where there is no locale
    ours_alone = {"MERIT_PARENT": str(os.getpid()), "MERIT_OUTPUT": str(item.output)}
    assert found["env"] == {name: value for name, value in os.environ.items() if name != "LC_CTYPE"} | ours_alone
    assert found["files"] == ["0", "1", "2"]


def test_a_killed_job_tells_its_signal(tmp_path, ours):
    started = start_process(item := job(tmp_path / "a", "os.kill(os.getpid(), signal.SIGKILL)"), item.command, {})
    assert started.process.wait(30) == -signal.SIGKILL


def test_a_forked_job_is_stopped_with_all_that_it_started(tmp_path, ours):
    program = (
        "import subprocess\nhelper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"Path({str(tmp_path)!r}, 'part').write_text(str(helper.pid))\n"
        f"Path({str(tmp_path)!r}, 'part').rename({str(tmp_path / 'helper')!r})\ntime.sleep(600)"
    )
    item = job(tmp_path / "a", program)
    started = start_process(item, item.command, {})
    wait_until((tmp_path / "helper").exists)
    with pytest.raises(subprocess.TimeoutExpired):
        started.process.wait(0.1)
    stop_processes([started.process])
    assert started.process.poll() == -signal.SIGTERM
    wait_until(lambda: not alive(int((tmp_path / "helper").read_text())))


@pytest.mark.parametrize("other", ["variables", "program"])
def test_what_is_not_alike_starts_by_itself(other, tmp_path, ours):
    item = job(tmp_path / "a", "", env={"HF_HOME": str(tmp_path)} if other == "variables" else {})
    command = item.command if other == "variables" else (sys.executable, "-c", "pass")
    started = start_process(item, command, {})
    assert isinstance(started.process, subprocess.Popen)
    started.process.wait(30)


def test_as_many_threads_as_the_user_has_set_are_no_reason_to_fork(tmp_path, environment, monkeypatch):
    """OpenMP has read the nursery's number of threads: a job with that of the user's own environment has another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = Nursery(["instead"], environment | {"OMP_NUM_THREADS": "1"})
    try:
        with (tmp_path / "output").open("ab") as output:
            command = merit_command("pass")
            assert found.fork(command, environment | {"OMP_NUM_THREADS": "2"}, output) is None
            same = found.fork(command, environment | {"OMP_NUM_THREADS": "1"}, output)
            assert same is not None
            assert same.wait(30) == 0
    finally:
        found.close()


def test_a_variable_that_is_gone_is_gone_for_the_job_too(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(nursery, "_ours", found := Nursery(["instead"], os.environ | {"OF_BEFORE": "1"}))
    item = job(tmp_path / "a", "")
    with_it = start_process(item, item.command, {"OF_BEFORE": "1"})
    assert isinstance(with_it.process, nursery.Forked)
    without = start_process(item, merit_command("--help"), {})
    assert isinstance(without.process, subprocess.Popen)
    stop_processes([with_it.process, without.process])
    assert not found.closed
    found.close()


def test_every_job_draws_numbers_of_its_own(tmp_path, environment):
    program = "import random, numpy; print(numpy.random.random(), random.random())"
    found = Nursery(["instead", "numpy.random", "random"], environment)
    try:
        with (tmp_path / "output").open("ab") as output:
            for _ in range(2):
                process = found.fork(merit_command(program), environment, output)
                assert process is not None
                assert process.wait(30) == 0
    finally:
        found.close()
    assert len(set((tmp_path / "output").read_text().split())) == 4


@pytest.mark.parametrize("late", [True, False])
def test_a_job_that_begins_too_late_is_watched_and_any_other_never_begins(late, tmp_path, environment):
    """No job is started twice: the answer that came in the last moment counts."""
    found = Nursery(["instead"], environment)
    found._line.settimeout(0.0)  # it is patient no longer than this
    part = found._line

    class Line:
        def recv(self, size):
            if not hasattr(self, "over"):
                self.over = True
                deadline = time.monotonic() + 30
                while late and not select.select([part], [], [], 0.1)[0]:
                    assert time.monotonic() < deadline
                raise TimeoutError
            return part.recv(size)

        def __getattr__(self, name):
            return getattr(part, name)

    found._line = Line()
    with (tmp_path / "output").open("ab") as output:
        process = found.fork(merit_command(HEAD + f"Path({str(tmp_path / 'begun')!r}).touch()"), environment, output)
    assert found.closed
    if late:
        assert process is not None
        assert process.wait(30) == 0
    else:
        assert process is None
        assert found._process.returncode is not None
    assert (tmp_path / "begun").exists() == late


def test_jobs_start_by_themselves_when_the_nursery_is_gone(tmp_path, ours):
    command = merit_command("--help")
    item = job(tmp_path / "a", "")
    ours._process.kill()
    started = start_process(item, command, {})
    assert isinstance(started.process, subprocess.Popen)
    assert started.process.wait(60) == 0
    assert "Usage" in item.output.read_text()
    assert ours.closed


def test_jobs_start_by_themselves_in_a_folder_that_is_gone(tmp_path, ours, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    started = start_process(job(tmp_path / "a", ""), merit_command("--help"), {})
    assert isinstance(started.process, subprocess.Popen)
    stop_processes([started.process])
    monkeypatch.undo()
    assert not ours.closed


def test_a_job_stays_in_a_folder_that_it_could_not_enter(tmp_path, environment):
    """As after `sudo -u`, in a folder of the one who called it. Root may go everywhere, so the nursery refuses to."""
    refuse = "import os\ndef chdir(_): raise PermissionError\nos.chdir = chdir\n"
    (tmp_path / "modules" / "refuse.py").write_text(refuse)
    found = Nursery(["instead", "refuse"], environment)
    try:
        with (tmp_path / "output").open("ab") as output:
            process = found.fork(merit_command("pass"), environment, output)
        assert process is not None
        assert process.wait(30) == 0
    finally:
        found.close()


def test_the_local_engine_forks_and_starts_again(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(nursery, "_modules", ("instead",))
    monkeypatch.setattr(nursery, "_ours", None)
    monkeypatch.setattr(nursery, "visible_gpus", lambda: [])
    monkeypatch.setattr(nursery.atexit, "register", lambda _: None)
    starts = tmp_path / "starts"
    program = (
        f"handle = open({str(starts)!r}, 'a')\nhandle.write('x')\nhandle.close()\n"
        f"if len(open({str(starts)!r}).read()) < 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Path({str(tmp_path / 'a' / 'DONE')!r}).touch()"
    )
    LocalExecutor(parallel=2).run([job(tmp_path / "a", program)])
    assert starts.read_text() == "xx"
    assert nursery._ours is not None
    assert not nursery._ours.closed
    nursery._ours.close()


def test_a_library_and_who_does_not_want_it_have_none(environment, monkeypatch):
    monkeypatch.setattr(nursery, "_ours", None)
    monkeypatch.setattr(nursery, "_modules", ())
    nursery.open_nursery({})
    assert nursery._ours is None
    monkeypatch.setattr(nursery, "_modules", ("instead",))
    monkeypatch.setenv(nursery.OFF, "1")
    nursery.open_nursery({})
    assert nursery._ours is None
    monkeypatch.delenv(nursery.OFF)
    monkeypatch.setattr(nursery, "visible_gpus", lambda: ["0"])
    nursery.open_nursery({})
    assert nursery._ours is None


def test_where_no_end_can_be_told_or_no_process_started_there_is_none(environment, monkeypatch):
    monkeypatch.setattr(nursery, "_ours", None)
    monkeypatch.setattr(nursery, "_modules", ("instead",))
    monkeypatch.setattr(nursery, "visible_gpus", lambda: [])
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        nursery.open_nursery({})
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert nursery._ours is None

    def refuse(*_args, **_options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(nursery.subprocess, "Popen", refuse)
    nursery.open_nursery({})
    assert nursery._ours is None


@pytest.mark.parametrize(("until", "asked"), [("train", True), ("mixture", False)])
def test_a_run_that_will_train_opens_it_at_once(until, asked, tmp_path, monkeypatch):
    """The imports are done while the data are read."""
    expected: list[str] = []
    engine = SimpleNamespace(expect=lambda launch: expected.append(launch.engine))
    monkeypatch.setattr(pipeline, "engine_named", lambda _: engine)
    ran: list[list[str]] = []
    steps = [
        replace(step, run=lambda _: ran.append([*expected]) or {}, depends=lambda _: {}, files=lambda _: [])
        for step in (pipeline.mixture.STEP, pipeline.train.STEP)
    ]
    monkeypatch.setattr(pipeline, "STEPS", tuple(steps))
    monkeypatch.setattr(pipeline, "STAGE_NAMES", ("mixture", "train"))
    monkeypatch.setattr(pipeline.train, "STEP", steps[1])
    monkeypatch.setattr(pipeline, "preflight", lambda _: None)
    monkeypatch.setattr(RunContext, "settle_freeze", lambda _: None)
    file = tmp_path / "merit.yaml"
    file.write_text("model: nowhere\nmixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}\nsplit: {axes: 1}\n")
    context = RunContext.open(file, output=tmp_path / "run")
    pipeline.run_pipeline(context, until=until)
    assert bool(ran[0]) == asked
    expected.clear()
    pipeline.run_pipeline(context, until=until)
    assert expected == []  # there is nothing to do


FAMILY = """
import sys, time
from pathlib import Path
from merit.base.machine import merit_command
from merit.jobs import nursery
from merit.jobs.engines.local import LocalExecutor
from merit.jobs.job import Job
here = Path(sys.argv[1])
program = '''
import os, sys, time
from pathlib import Path
from merit.jobs.process import die_with_parent
die_with_parent()
here = Path(os.environ["MERIT_OUTPUT"]).parent
(here / "part").write_text(str(os.getpid()))
(here / "part").rename(here / "pid")
time.sleep(600)
'''
nursery.enable(["instead"])
job = Job("a", tuple(merit_command(program)), here / "DONE", here / "p", here / "o")
import threading
def tell():
    while nursery._ours is None: time.sleep(0.01)
    (here / "nursery").write_text(str(nursery._ours._process.pid))
threading.Thread(target=tell).start()
LocalExecutor(parallel=1).run([job])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_jobs_and_nursery_end_with_their_parent(number, tmp_path, environment):
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "nursery").exists())
    pids = [int((tmp_path / name).read_text()) for name in ("pid", "nursery")]
    assert all(alive(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_what_jobs_import_starts_no_thread(tmp_path, environment):
    """A thread would be missing in the forks, with whatever it had locked. OpenBLAS and jemalloc see to theirs."""
    quiet = environment | {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}
    found = Nursery(JOBS_IMPORT, quiet)
    try:
        with (tmp_path / "output").open("ab") as output:
            process = found.fork(merit_command("schema"), quiet, output)
        assert process is not None
        threads = [file.read_text() for file in Path(f"/proc/{found._process.pid}/task").glob("*/comm")]
        assert process.wait(60) == 0
        assert (tmp_path / "output").read_text().startswith("{")
        assert len([name for name in threads if name != "jemalloc_bg_thd\n"]) == 1
    finally:
        found.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
