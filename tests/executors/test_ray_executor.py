"""Jobs on a real Ray cluster of several raylets: pools, a node that dies, a driver that dies, messages of failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import DONE, counting, job, starts_of, steps_of

from merit.config.launch import LaunchConfig, RayConfig, RayPool
from merit.errors import InputError, StageError
from merit.executors.drive import Rules
from merit.executors.record import JobRecord

pytest.importorskip("ray", reason="needs the extra `ray`")


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


def executor(address: str | None, rules: Rules | None = None, **options: Any):
    from merit.executors.ray import RayExecutor

    launch = LaunchConfig(engine="ray", ray=RayConfig(address=address, **options))
    return RayExecutor(launch, rules or Rules())


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
        executor(cluster.address, Rules(retries=1)).run([good, died, bad, killed])
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

    executor(cluster.address, Rules(stop=look), pools=POOLS).run([short, long])
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
    executor(cluster.address, Rules(retries=0, stop=preempt), pools=pools).run([item])
    assert gone
    assert starts_of(item) == 2
    assert set(steps_of(item)) == set(range(30))
    assert len(steps_of(item)) <= 31


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from jobs import counting
from test_ray_executor import executor
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


def test_cancelled(cluster, tmp_path):
    item = counting(tmp_path, "a", 600)
    begun = tmp_path / "a" / "count"
    rules = Rules(stop=lambda: "cancelled; run again to resume" if begun.exists() else None)
    with pytest.raises(StageError, match="cancelled"):
        executor(cluster.address, rules).run([item])
    last = begun.read_text()
    time.sleep(0.5)
    assert begun.read_text() == last


def test_no_cluster(tmp_path):
    with pytest.raises(InputError, match=r"`launch\.ray\.address`: no Ray cluster answers at 127\.0\.0\.1:1: "):
        executor("127.0.0.1:1").run([job(tmp_path, "a", DONE)])
