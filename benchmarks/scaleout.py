"""What executors cost over running a command by hand, what moves between machines, and a simulated fleet.

    python benchmarks/scaleout.py [--quick] [--only local,ray,slurm,equal,bytes,joint,fleet]

Ray: a head and two raylets started here. Slurm: munged, slurmctld and slurmd of Debian's packages, started here as
root. What is not installed gives null. Prints a table, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fleet
from merit.config.launch import LaunchConfig, RayConfig, SlurmConfig
from merit.jobs.drive import Rules
from merit.jobs.job import Executor, Job
from merit.jobs.make import make_executor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "jobs"))
from slurm_cluster import SlurmCluster, why_not  # noqa: E402

SLEEP = "import pathlib, sys, time; time.sleep(float(sys.argv[2])); pathlib.Path(sys.argv[1], 'DONE').touch()"
KEYS = (
    *("overhead_local_s", "overhead_ray_s", "overhead_slurm_s", "equal_local", "equal_ray"),
    *("plan_bytes_error", "branch_bytes", "joint_bytes", "joint_bytes_error", "fleet_over_bound"),
)
WORKERS = 4
SEEDS = 20


def sleepers(folder: Path, seconds: float, count: int) -> list[Job]:
    """Jobs that sleep, as a branch on somebody else's GPU looks from here."""
    jobs = []
    for index in range(count):
        here = folder / f"job{index}"
        here.mkdir(parents=True)
        command = (sys.executable, "-c", SLEEP, str(here), str(seconds))
        jobs.append(Job(f"job {index}", command, here / "DONE", here / "p.json", here / "out.txt"))
    return jobs


def by_hand(seconds: float) -> float:
    """The same command, started by hand."""
    with tempfile.TemporaryDirectory() as folder:
        (job,) = sleepers(Path(folder), seconds, 1)
        started = time.perf_counter()
        subprocess.run(job.command, check=True)
        return time.perf_counter() - started


def executor_seconds(make: Callable[[Path], Executor], seconds: float, count: int) -> float:
    """Wall clock of `count` equal jobs through an executor, its start and its end included."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = sleepers(Path(folder), seconds, count)
        started = time.perf_counter()
        make(Path(folder) / "engine").run(jobs)
        return time.perf_counter() - started


def overhead(make: Callable[[Path], Executor], repeats: int) -> float:
    """Seconds that one job costs more than by hand: the median."""
    return statistics.median(executor_seconds(make, 1.0, 1) - by_hand(1.0) for _ in range(repeats))


def engine(**launch: Any) -> Callable[[Path], Executor]:
    config = LaunchConfig(**launch)
    return lambda folder: make_executor(config, Rules(), folder)


@contextlib.contextmanager
def ray_cluster() -> Iterator[str | None]:
    """The address of a cluster that runs already, as a user's does; None without Ray."""
    if importlib.util.find_spec("ray") is None:
        yield None
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=WORKERS // 2)
        yield cluster.address
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def slurm_cluster() -> Iterator[bool]:
    """Whether a Slurm could be started."""
    if why_not() is not None or importlib.util.find_spec("submitit") is None:
        yield False
        return
    with SlurmCluster() as cluster:
        before = {name: os.environ.get(name) for name in cluster.env}
        os.environ.update(cluster.env)
        try:
            yield True
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def moved_bytes(quick: bool) -> dict[str, float]:
    """Bytes that a run's branches move through a store, counted by the file system, against `merit plan`'s formula."""
    from scaleout_bytes import count_branch_bytes

    return count_branch_bytes(quick)


def joint_bytes(quick: bool) -> dict[str, float]:
    """Bytes on the loopback device while two processes train data-parallel, against the formula."""
    from scaleout_bytes import count_joint_bytes

    return count_joint_bytes(quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, the same keys")
    parser.add_argument("--only", default="local,ray,slurm,equal,bytes,joint,fleet")
    options = parser.parse_args()
    wanted = options.only.split(",")
    repeats = 1 if options.quick else 5
    length = 3.0 if options.quick else 10.0
    found: dict[str, float | None] = dict.fromkeys(KEYS)
    if "local" in wanted:
        found["overhead_local_s"] = overhead(engine(parallel=1), repeats)
    if "equal" in wanted:
        found["equal_local"] = executor_seconds(engine(parallel=WORKERS), length, WORKERS) / length
    if "ray" in wanted:
        with ray_cluster() as address:
            if address is not None:
                cluster = engine(engine="ray", ray=RayConfig(address=address))
                found["overhead_ray_s"] = overhead(cluster, repeats)
                if "equal" in wanted:
                    found["equal_ray"] = executor_seconds(cluster, length, WORKERS) / length
    if "slurm" in wanted:
        with slurm_cluster() as there:
            if there:
                found["overhead_slurm_s"] = overhead(
                    engine(engine="slurm", slurm=SlurmConfig(partition="low", minutes=10, poll_seconds=1)), repeats
                )
    if "bytes" in wanted:
        found |= moved_bytes(options.quick)
    if "joint" in wanted:
        found |= joint_bytes(options.quick)
    if "fleet" in wanted:
        logging.getLogger("merit").setLevel(logging.ERROR)  # hundreds of preemptions are the point
        runs = [fleet.simulate(64, 0.1, seed) for seed in range(2 if options.quick else SEEDS)]
        found["fleet_over_bound"] = max(run["over_bound"] for run in runs)
        found["fleet_preemptions"] = statistics.mean(run["lost"] for run in runs)
        found["fleet_moves"] = statistics.mean(run["moved"] for run in runs)
    for name, value in found.items():
        print(f"{name:24} {'–' if value is None else f'{value:,.4g}'}")
    print(json.dumps({name: None if value is None else round(value, 5) for name, value in found.items()}))


if __name__ == "__main__":
    main()
