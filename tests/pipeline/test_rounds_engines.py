"""Four rounds on Ray and on Slurm: every branch of a round is a job of the cluster. The run ends with the table that
this machine makes, row by row, from the same bits."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import HEAD, merit_here, rows_of, start_warm, weights_of

import warm
from apart import apart
from four_files import write_four_files
from merit.run.events import read_events
from merit.run.layout import RunDir

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
from slurm_cluster import SlurmCluster, why_not

RECIPE = (
    HEAD
    + """
train: {{rounds: 4, epochs: 2, learning_rate: 3.0e-3, batch_tokens: 200, precision: fp32}}
evaluate: {{held_out: 2, generate: 0, drift: 0, branches: false}}
launch: {launch}
"""
)
LABELS = ["base", "merit/round-1", "merit/round-2", "merit/round-3", "merit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounds")
    write_four_files(path)
    return path


def recipe(folder: Path, model: Path, name: str, launch: dict[str, Any]) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(model=model, launch=json.dumps(launch)))
    return file


@pytest.fixture(scope="module")
def here(folder: Path, tiny_model: Path) -> RunDir:
    """The same run on this machine."""
    with warm.jobs():
        merit_here("run", recipe(folder, tiny_model, "here", {"parallel": 2}))
    return RunDir(folder / "runs" / "here")


def check(file: Path, here: RunDir) -> RunDir:
    """Runs `merit run` to its end, and compares."""
    table = merit_here("run", file)
    run = RunDir(file.parent / "runs" / file.stem)
    assert [line.split()[0] for line in table.splitlines() if line.split()[:1] and line.split()[0] in LABELS] == LABELS
    assert rows_of(run) == rows_of(here)
    weights = weights_of(run.root)
    assert {f"rounds/{number:02d}/merged/model.safetensors" for number in (1, 2, 3)} <= weights.keys()
    assert weights == weights_of(here.root)
    return run


def times(run: RunDir, event: str, branch: int) -> int:
    """How often a training of this branch started or ended."""
    return sum((item["event"], item["stage"]) == (event, f"train merit {branch}") for item in read_events(run.events))


def run_on_ray(folder: Path, model: Path, here: Path) -> list[int]:
    """How often each branch was trained to its end."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        launch = {"engine": "ray", "ray": {"address": cluster.address}}
        run = check(recipe(folder, model, "ray", launch), RunDir(here))
    finally:
        cluster.shutdown()
    return [times(run, "end", k) for k in (0, 1)]


def test_ray_with_two_workers(folder: Path, tiny_model: Path, here: RunDir) -> None:
    assert apart(run_on_ray, folder, tiny_model, here.root) == [4, 4]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_slurm_where_the_driver_dies_and_a_job_is_cancelled(
    folder: Path, tiny_model: Path, here: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in the second round. The job that nobody cancelled goes on without its driver."""
    with SlurmCluster() as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        launch = {"engine": "slurm", "slurm": {"poll_seconds": 0.5, "minutes": 10}}
        file = recipe(folder, tiny_model, "slurm", launch)
        run = RunDir(folder / "runs" / "slurm")
        driver = start_warm("run", file)
        try:
            while times(run, "start", 1) < 2:
                assert driver.poll() is None
                time.sleep(0.05)
        finally:
            driver.kill()
            driver.wait()
        jobs = [run.method().round(2).branch(k).job for k in (0, 1)]
        kept, gone = (json.loads(job.read_text())["id"] for job in jobs)
        cluster.call("scancel", gone)
        check(file, here)
        assert [json.loads(job.read_text())["id"] == old for job, old in zip(jobs, (kept, gone), strict=True)] == [
            True,
            False,
        ]
    assert times(run, "start", 0) == times(run, "end", 0) == 4
