"""Jobs on a real Slurm, started by the test: queue, preemption, time-out, a driver that dies, messages of failures."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, free_port, why_not

from jobs import DONE, counting, job, starts_of, steps_of
from merit.base.errors import InputError, StageError
from merit.cli.main import answer
from merit.config.launch import LaunchConfig, SlurmConfig
from merit.jobs.drive import RetryPolicy
from merit.jobs.engines.slurm import cancel_jobs
from merit.jobs.job import JobRecord

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    patch = pytest.MonkeyPatch()
    with SlurmCluster() as cluster:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster
    patch.undo()


def executor(folder: Path, policy: RetryPolicy | None = None, **options):
    from merit.jobs.engines.slurm import SlurmExecutor

    options = {"partition": "low", "poll_seconds": 0.3, "minutes": 10} | options
    launch = LaunchConfig(engine="slurm", slurm=SlurmConfig(**options))
    return SlurmExecutor(launch, policy or RetryPolicy(), folder / "engine")


def wait_until(condition) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def slurm_id(item) -> str:
    record = JobRecord.load(item.record)
    assert record is not None
    return record.id


def test_a_job_that_ends_while_its_new_driver_looks_is_not_sent_again(slurm, tmp_path, monkeypatch):
    from merit.jobs.engines import slurm as module

    backend = module.SlurmBackend(LaunchConfig(engine="slurm", slurm=SlurmConfig()), tmp_path, 1)
    item = job(tmp_path, "late", DONE)
    item.done.parent.mkdir()

    def ends(_):
        item.done.touch()
        return {}

    monkeypatch.setattr(module, "read_queue", ends)
    monkeypatch.setattr(backend, "_submit", lambda _: pytest.fail("submitted once more"))
    backend.start([(item, backend.slots()[0])])
    end = backend.poll(item)
    assert end is not None
    assert end.kind == "done"


def test_an_array_of_jobs_runs_to_its_end(slurm, tmp_path):
    jobs = [job(tmp_path, name, "print('hello')\n" + DONE, env={"MINE": name}) for name in "abc"]
    executor(tmp_path).run(jobs)
    assert all(item.done.exists() for item in jobs)
    assert (tmp_path / "a" / "output.txt").read_text() == "hello\n"
    ids = [slurm_id(item) for item in jobs]
    assert len({ident.split("_")[0] for ident in ids}) == 1  # one array
    assert [ident.split("_")[1] for ident in ids] == ["0", "1", "2"]


def test_failures_are_told_as_everywhere(slurm, tmp_path):
    died = job(tmp_path, "died", "sys.stderr.write('one\\ntwo\\n'); sys.exit(1)\n")
    bad = job(tmp_path, "bad", "sys.stderr.write('spec.json: wrong\\n'); sys.exit(2)\n")
    killed = job(tmp_path, "killed", "os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(StageError) as caught:
        executor(tmp_path, RetryPolicy(retries=0)).run([died, bad, killed])
    text = str(caught.value)
    assert "died failed (exit code 1): two; see " in text
    assert "bad failed (exit code 2): spec.json: wrong; see " in text
    assert "killed failed (SIGKILL, perhaps out of memory); see " in text


def test_a_job_that_never_began_says_why(slurm, tmp_path):
    with pytest.raises(StageError, match=r"Slurm: FAILED .*: no module `cuda/99` here"):
        executor(tmp_path, RetryPolicy(retries=0), setup=["echo 'no module `cuda/99` here' >&2; exit 1"]).run(
            [job(tmp_path, "unbegun", DONE)]
        )


def run_disturbed(slurm, item, disturb) -> None:
    """Runs `item`, disturbs it once it counts, and sees to it that its requeued start does not wait for minutes."""
    idents: list[str] = []

    def stop() -> str | None:
        if not idents and (item.done.parent / "count").exists():
            idents.append(slurm_id(item))
            disturb(idents[0])
        slurm.hurry()
        return None

    executor(item.done.parent.parent, RetryPolicy(retries=0, preemption_retries=1, stop=stop)).run([item])
    assert idents == [slurm_id(item)]  # requeued, not submitted again
    assert starts_of(item) == 2
    steps = steps_of(item)
    assert set(steps) == set(range(len(set(steps))))
    assert len(steps) <= len(set(steps)) + 1  # a step at most is done again


def test_a_preempted_job_is_requeued_and_resumes(slurm, tmp_path):
    def preempt(_: str) -> None:
        slurm.call("sbatch", "--partition=high", "--output=/dev/null", "--cpus-per-task=2", "--wrap", "sleep 1")

    run_disturbed(slurm, counting(tmp_path, "preempted", 600, again=5), preempt)


def test_a_job_whose_time_is_nearly_up_is_requeued_and_resumes(slurm, tmp_path):
    """Slurm itself warns it. It looks at time limits twice a minute, so a limit that is cut short is soon noticed."""

    def cut_short(ident: str) -> None:
        slurm.call("scontrol", "update", f"JobId={ident}", "EndTime=now+60")

    run_disturbed(slurm, counting(tmp_path, "timed", 900, again=5), cut_short)


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from jobs import counting
from test_slurm_executor import executor
folder = Path(sys.argv[1])
executor(folder).run([counting(folder, "a", 30)])
"""


def test_a_driver_that_dies_finds_its_job_again(slurm, tmp_path):
    program = DRIVER.format(tests=str(Path(__file__).parent))
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=dict(os.environ))
    wait_until((tmp_path / "a" / "count").exists)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    item = counting(tmp_path, "a", 30)
    before = slurm_id(item)
    assert not item.done.exists()
    executor(tmp_path).run([item])
    assert slurm_id(item) == before
    assert starts_of(item) == 1  # it never stopped
    assert steps_of(item) == list(range(30))


def test_cancelled_jobs_leave_the_queue(slurm, tmp_path):
    item = counting(tmp_path, "a", 600)
    begun = tmp_path / "a" / "count"
    policy = RetryPolicy(stop=lambda: "cancelled; run again to resume" if begun.exists() else None)
    with pytest.raises(StageError, match="cancelled"):
        executor(tmp_path, policy).run([item])
    wait_until(lambda: not slurm.call("squeue", "--noheader", "--states=RUNNING,PENDING").strip())
    record = JobRecord.load(item.record)
    assert record is not None
    assert record.state == "cancelled"


def test_an_interrupted_driver_leaves_what_the_next_one_finds(slurm, tmp_path, caplog):
    found = counting(tmp_path, "branch", 600)
    worker = replace(counting(tmp_path, "worker", 600), record=None)

    def interrupt() -> str | None:
        if all((tmp_path / name / "count").exists() for name in ("branch", "worker")):
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        executor(tmp_path, RetryPolicy(stop=interrupt)).run([found, worker])
    assert "1 job stays in Slurm's queue; run again to go on watching" in caplog.text
    wait_until(lambda: slurm.call("squeue", "--noheader", "--array", "--format=%i").split() == [slurm_id(found)])
    cancel_jobs([slurm_id(found)])
    wait_until(lambda: not slurm.call("squeue", "--noheader").strip())


STUBBORN = """
from merit.jobs.process import die_with_parent
die_with_parent()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm kills it after KillWait; until then it is COMPLETING
if not (here / 'begun').exists():
    (here / 'begun').touch()
    time.sleep(600)
"""


def test_a_job_that_is_just_ending_is_sent_again(slurm, tmp_path):
    item = job(tmp_path, "a", STUBBORN + DONE)

    def interrupt() -> str | None:
        if (tmp_path / "a" / "begun").exists():
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        executor(tmp_path, RetryPolicy(stop=interrupt)).run([item])
    before = slurm_id(item)
    slurm.call("scancel", before)
    executor(tmp_path, RetryPolicy(retries=0)).run([item])
    assert item.done.exists()
    assert slurm_id(item) != before


def test_a_job_that_somebody_cancels_is_not_sent_again(slurm, tmp_path):
    one, other = counting(tmp_path, "one", 600), counting(tmp_path, "other", 20)
    begun, cancelled = tmp_path / "one" / "count", []

    def cancel() -> str | None:
        if begun.exists() and not cancelled:
            cancelled.append(slurm_id(one))
            slurm.call("scancel", cancelled[0])
        return None

    with pytest.raises(StageError) as caught:
        executor(tmp_path, RetryPolicy(retries=5, stop=cancel)).run([one, other])
    said = f"one failed (job {cancelled[0]} was cancelled in Slurm; run again to resume); see "
    assert str(caught.value).startswith(said)
    assert starts_of(one) == 1
    assert other.done.exists()  # nobody has cancelled this one
    record = JobRecord.load(one.record)
    assert record is not None
    assert record.state == "cancelled"


def test_a_job_that_will_never_start_is_spoken_of(slurm, tmp_path, caplog):
    deadline = time.monotonic() + 40

    def told() -> str | None:
        return "seen" if "PartitionTimeLimit" in caplog.text or time.monotonic() > deadline else None

    with pytest.raises(StageError, match="seen"):
        executor(tmp_path, RetryPolicy(stop=told), minutes=600).run(
            [job(tmp_path, "a", DONE), job(tmp_path, "b", DONE)]
        )
    assert caplog.text.count("lower `launch.slurm.minutes`") == 1
    assert not (tmp_path / "a" / "DONE").exists()


def test_what_slurm_refuses_is_said(slurm, tmp_path):
    with pytest.raises(InputError, match=r"`launch\.slurm`: sbatch refused the job: .*partition"):
        executor(tmp_path, partition="nowhere").run([job(tmp_path, "a", DONE)])


def said(capfd: pytest.CaptureFixture[str], action: Callable[[], object]) -> tuple[int, str]:
    """Exit code and stderr of a command that does `action`."""
    code = answer(action)
    return code, capfd.readouterr().err


@pytest.mark.parametrize("there", [[], ["srun"], ["srun", "squeue", "scancel"]])
def test_without_slurm(there, tmp_path, monkeypatch, capfd):
    for name in there:
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, err = said(capfd, lambda: executor(tmp_path).run([job(tmp_path, "a", DONE)]))
    missing = ", ".join(name for name in ("sbatch", "srun", "squeue", "scancel") if name not in there)
    assert code == 2
    assert err == f"`launch.engine`: Slurm's commands ({missing}) are not on this machine\n"


@pytest.fixture(params=["no controller", "no munge"])
def silent(request, slurm, tmp_path, monkeypatch) -> None:
    """A Slurm of which a part is down."""
    config = tmp_path / "slurm.conf"
    text = Path(slurm.env["SLURM_CONF"]).read_text()
    if request.param == "no controller":
        text = re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={free_port()}\nMessageTimeout=2", text)
    else:
        text = text.replace("munge.socket", "nowhere.socket")
    config.write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(config))


def test_a_slurm_that_does_not_answer(silent, tmp_path, capfd):
    item = job(tmp_path, "a", DONE)
    code, err = said(capfd, lambda: executor(tmp_path).run([item]))
    assert code == 1
    assert re.fullmatch(r"Slurm does not answer: .+; run again when it does\n", err)
    # Jobs of an earlier driver: they are not sent again, and not said to be cancelled.
    JobRecord("slurm", "running", "1").save(item.record)
    code, err = said(capfd, lambda: executor(tmp_path).run([item]))
    assert (code, err.partition(":")[0]) == (1, "Slurm does not answer")
    code, err = said(capfd, lambda: cancel_jobs(["1"]))
    assert (code, err.partition(":")[0]) == (1, "Slurm does not answer")
