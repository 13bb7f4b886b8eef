"""Rounds on Ray and on Slurm: every branch are jobs of the cluster; the bits are those of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import HEAD, weights_of

import warm
from four_files import write_four_files
from merit.context import RunContext
from merit.pipeline import run_pipeline
from merit.run.events import read_events

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
from slurm_cluster import SlurmCluster, why_not

RECIPE = (
    HEAD
    + """
train: {{rounds: 2, epochs: 2, learning_rate: 3.0e-3, batch_tokens: 200, precision: fp32}}
launch: {launch}
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounds")
    write_four_files(path)
    return path


def merged_run(folder: Path, model: Path, name: str, launch: dict[str, Any]) -> RunContext:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(model=model, launch=json.dumps(launch)))
    context = RunContext.open(file)
    run_pipeline(context, until="merge")
    return context


@pytest.fixture(scope="module")
def here(folder: Path, tiny_model: Path) -> dict[str, str]:
    """The weights of the same run on this machine."""
    with warm.jobs():
        return weights_of(merged_run(folder, tiny_model, "here", {"parallel": 2}).run.root)


def check(context: RunContext, here: dict[str, str]) -> None:
    assert "rounds/01/merged/model.safetensors" in here
    assert weights_of(context.run.root) == here
    events = [(event["event"], event["stage"]) for event in read_events(context.run.events)]
    assert [events.count(("end", f"train merit {k}")) for k in (0, 1)] == [2, 2]


def test_ray_with_two_workers(folder: Path, tiny_model: Path, here: dict[str, str]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        check(merged_run(folder, tiny_model, "ray", {"engine": "ray", "ray": {"address": cluster.address}}), here)
    finally:
        cluster.shutdown()


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_slurm(folder: Path, tiny_model: Path, here: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with SlurmCluster() as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        launch = {"engine": "slurm", "slurm": {"poll_seconds": 0.5, "minutes": 10}}
        check(merged_run(folder, tiny_model, "slurm", launch), here)
