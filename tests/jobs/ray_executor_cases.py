"""Jobs on a real Ray cluster of several raylets: pools, a node that dies, a driver that dies, messages of failures."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import DONE, counting, job, starts_of, steps_of
from merit.base.errors import StageError
from merit.cli.main import answer
from merit.config.launch import LaunchConfig, RayConfig, RayPool
from merit.jobs.drive import RetryPolicy
from merit.jobs.job import Job, JobRecord


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two machines: `fast` and `slow`."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.add_node(num_cpus=2, resources={"fast": 1})
    found.add_node(num_cpus=2, resources={"slow": 1})
    found.wait_for_nodes()
    yield found
    found.shutdown()


def executor(address: str | None, policy: RetryPolicy | None = None, **options: Any):
    from merit.jobs.engines.ray import RayExecutor

    launch = LaunchConfig(engine="ray", ray=RayConfig(address=address, **options))
    return RayExecutor(launch, policy or RetryPolicy())


POOLS = {
    "fast": RayPool(slots=1, speed=2.0, resources={"fast": 1}),
    "slow": RayPool(slots=1, speed=1.0, resources={"slow": 1}),
}


def test_jobs_run_and_fail_as_everywhere(cluster, tmp_path):
    good = job(tmp_path, "good", "print('hello', os.environ['OMP_NUM_THREADS'], os.environ['MINE'])\n" + DONE,
               env={"MINE": "x"})  # fmt: skip
    died = job(tmp_path, "died", "sys.stderr.write('one\\ntwo\\n'); sys.exit(1)\n")
    bad = job(tmp_path, "bad", "sys.stderr.write('spec.json: wrong\\n'); sys.exit(2)\n")
    killed = job(
        tmp_path,
        "killed",
        "if not (here / 'once').exists(): (here / 'once').touch(); os.kill(os.getpid(), signal.SIGKILL)\n" + DONE,
    )
    with pytest.raises(StageError) as caught:
        executor(cluster.address, RetryPolicy(retries=1)).run([good, died, bad, killed])
    assert "died failed (exit code 1): two; see " in str(caught.value)
    assert "bad failed (exit code 2): spec.json: wrong; see " in str(caught.value)
    assert "killed" not in str(caught.value)
    assert killed.done.exists()
    assert (tmp_path / "good" / "output.txt").read_text() == "hello 1 x\n"
    record = JobRecord.load(good.record)
    assert record is not None
    assert (record.engine, record.state) == ("ray", "done")


def test_the_longest_branch_goes_to_the_fastest_pool(cluster, tmp_path):
    where = "(here / 'node').write_text(os.environ.get('RAY_NODE_ID', '') or str(os.getppid()))\n"
    long, short = (job(tmp_path, name, where + DONE, weight=weight) for name, weight in (("l", 9), ("s", 5)))
    seen: dict[str, str] = {}

    def look() -> str | None:
        for item in (long, short):
            record = JobRecord.load(item.record)
            if record is not None and record.state == "running":
                seen[item.name] = record.where
        return None

    executor(cluster.address, RetryPolicy(stop=look), pools=POOLS).run([short, long])
    assert seen == {"l": "fast", "s": "slow"}


def test_a_machine_that_dies_costs_a_checkpoint_interval(cluster, tmp_path):
    spot = cluster.add_node(num_cpus=2, resources={"spot": 1})
    item = counting(tmp_path, "a", 30)
    begun = tmp_path / "a" / "count"
    gone: list[bool] = []

    def preempt() -> str | None:
        if not gone and begun.exists():
            cluster.remove_node(spot, allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"spot": 1})
            gone.append(True)
        return None

    pools = {"spot": RayPool(slots=1, resources={"spot": 1})}
    executor(cluster.address, RetryPolicy(retries=0, stop=preempt), pools=pools).run([item])
    assert gone
    assert starts_of(item) == 2
    assert set(steps_of(item)) == set(range(30))
    assert len(steps_of(item)) <= 31


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from jobs import counting
from ray_executor_cases import executor
folder = Path(sys.argv[1])
executor({address!r}).run([counting(folder, "a", 600)])
"""


def test_a_driver_that_dies_takes_its_jobs_along_and_the_next_resumes(cluster, tmp_path):
    program = DRIVER.format(tests=str(Path(__file__).parent), address=cluster.address)
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=dict(os.environ))
    count = tmp_path / "a" / "count"
    deadline = time.monotonic() + 40
    while not count.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    begun = int(count.read_text())
    item = counting(tmp_path, "a", begun + 20)
    executor(cluster.address).run([item])
    assert item.done.exists()
    assert starts_of(item) == 2
    assert set(steps_of(item)) == set(range(begun + 20))
    assert len(steps_of(item)) <= begun + 21


HEADLESS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from jobs import counting
from merit.cli.main import answer
from merit.jobs.engines import ray
from ray_executor_cases import executor
ray._ASK_SECONDS = ray._SILENT_SECONDS = 1
sys.exit(answer(lambda: executor({address!r}).run([counting(Path(sys.argv[1]), "a", 6000)])))
"""


def test_a_head_that_dies_ends_the_run(tmp_path):
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    other = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    address = other.address
    try:
        program = HEADLESS.format(tests=str(Path(__file__).parent), address=address)
        driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (tmp_path / "a" / "count").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        other.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        _, err = driver.communicate(timeout=60)
    finally:
        other.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    assert driver.returncode == 1
    assert re.search(
        rf"the head of the Ray cluster at {address} is gone \(.*\); run again to resume when there is one\n", err
    )


def test_no_place_to_start_ray(tmp_path, capfd, monkeypatch):
    """Of its own accord Ray begins a cluster on this machine, with its files in a folder that is none here."""
    monkeypatch.setenv("RAY_TMPDIR", str(Path(__file__)))
    code, err = said(capfd, None, job(tmp_path, "a", DONE))
    assert code == 2
    assert re.fullmatch(r"`launch\.engine`: Ray does not start on this machine: .*Not a directory.*\n", err)


def test_cancelled(cluster, tmp_path):
    item = counting(tmp_path, "a", 600)
    begun = tmp_path / "a" / "count"
    policy = RetryPolicy(stop=lambda: "cancelled; run again to resume" if begun.exists() else None)
    with pytest.raises(StageError, match="cancelled"):
        executor(cluster.address, policy).run([item])
    last = begun.read_text()
    time.sleep(0.5)
    assert begun.read_text() == last


def test_a_job_that_ray_ends_for_want_of_memory_resumes_elsewhere(cluster, tmp_path, monkeypatch):
    """Ray's own watch over memory, told that a hundredth of this machine's is too much."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    small = cluster.add_node(num_cpus=1, resources={"roomy": 1})
    monkeypatch.delenv("RAY_memory_usage_threshold")
    item = counting(tmp_path, "a", 10)
    with pytest.raises(StageError, match=r"^a failed .*: Ray ended it: the machine ran out of memory; see "):
        executor(cluster.address, RetryPolicy(retries=1), resources={"roomy": 1}).run([item])
    cluster.remove_node(small)
    cluster.add_node(num_cpus=1, resources={"roomy": 1})
    executor(cluster.address, resources={"roomy": 1}).run([item])
    assert set(steps_of(item)) == set(range(10))


def said(capfd: pytest.CaptureFixture[str], address: str | None, item: Job) -> tuple[int, str]:
    """Exit code and stderr of a command that runs `item`."""
    code = answer(lambda: executor(address).run([item]))
    return code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        (f"{'long' * 20}:6379", "too long"),
        ("nonsense", "Invalid address format"),
        ("http://127.0.0.1:8265", "Invalid Ray address"),
    ],
)
def test_no_cluster(address, why, tmp_path, capfd):
    code, err = said(capfd, address, job(tmp_path, "a", DONE))
    assert code == 2
    assert re.fullmatch(rf"`launch\.ray\.address`: no Ray cluster answers at {address}: .*{why}.*\n", err)


def test_an_address_without_its_port(tmp_path, capfd):
    code, err = said(capfd, "ray://127.0.0.1", job(tmp_path, "a", DONE))
    assert (code, err) == (2, "`launch.ray.address`: ray://127.0.0.1 is no address of Ray; write ray://HOST:10001\n")


@pytest.mark.parametrize("words", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
@pytest.mark.parametrize("client", ["", "ray://"])
def test_another_server_at_the_address(words, client, tmp_path, capfd, monkeypatch):
    """One that is silent, one that hangs up, one of the web."""
    monkeypatch.setattr("merit.jobs.engines.ray._KNOCK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as line:
                if words is None:
                    line.recv(1000)
                    line.recv(1000)  # until the other side has had enough
                else:
                    line.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("RAY_ADDRESS", f"{client}127.0.0.1:{server.getsockname()[1]}")
        code, err = said(capfd, None, job(tmp_path, "a", DONE))
        thread.join()
    assert code == 2
    assert re.fullmatch(r"`RAY_ADDRESS`: no Ray cluster answers at (ray://)?127\.0\.0\.1:\d+: .+\n", err)
