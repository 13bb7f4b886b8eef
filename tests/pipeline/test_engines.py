"""The same run on every engine, disturbed: a machine lost, a job requeued, a failing store. The bits stay the same."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import HEAD, start, weights_of

from four_files import write_four_files
from merit.errors import InputError
from merit.pipeline import run_pipeline
from merit.run.events import read_events
from merit.run.layout import RunDir
from merit.stages.context import RunContext

sys.path.insert(0, str(Path(__file__).parents[1] / "executors"))
from slurm_cluster import SlurmCluster, why_not

RECIPE = (
    HEAD
    + """
train:
  {{epochs: 60, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32, checkpoint_minutes: 0.01}}
evaluate: {{held_out: 4, generate: 1, max_new_tokens: 4, drift: 2}}
launch: {launch}
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines")
    write_four_files(path)
    return path


def context_of(folder: Path, model: Path, name: str, launch: dict[str, Any]) -> RunContext:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(model=model, launch=json.dumps(launch)))
    return RunContext.open(file)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tiny_model: Path) -> dict[str, str]:
    """Weights of all models of a run on this machine that nothing happens to."""
    context = context_of(folder, tiny_model, "local", {"parallel": 2})
    run_pipeline(context, until="merge")
    return weights_of(context.run.root)


@contextlib.contextmanager
def once_training(run: RunDir, branches: tuple[int, ...], disturb: Callable[[], None]) -> Iterator[None]:
    """Calls `disturb` as soon as every one of `branches` has a checkpoint."""
    stop = threading.Event()
    done: list[bool] = []

    def watch() -> None:
        while not stop.wait(0.05):
            if all(any(run.method().branch(k).training_state.glob("checkpoint-*/merit.json")) for k in branches):
                disturb()
                done.append(True)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert done, "nothing was disturbed"


def finished(run: RunDir, k: int) -> int:
    """How often branch `k` was trained to its end."""
    return sum(event["event"] == "end" and event["stage"] == f"train merit {k}" for event in read_events(run.events))


def test_ray_loses_a_machine(folder: Path, tiny_model: Path, undisturbed: dict[str, str]) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        spot = cluster.add_node(num_cpus=1)
        launch = {"engine": "ray", "retries": 0, "ray": {"address": cluster.address}}
        context = context_of(folder, tiny_model, "ray", launch)
        with once_training(context.run, (0, 1), lambda: cluster.remove_node(spot, allow_graceful=False)):
            run_pipeline(context, until="merge")
    finally:
        cluster.shutdown()
    assert weights_of(context.run.root) == undisturbed
    assert [finished(context.run, k) for k in (0, 1)] == [1, 1]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_slurm_requeues_a_job_and_the_driver_dies(
    folder: Path, tiny_model: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs the extra `slurm`")
    with SlurmCluster() as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        launch = {"engine": "slurm", "slurm": {"poll_seconds": 0.5, "minutes": 10}}
        context = context_of(folder, tiny_model, "slurm", launch)
        driver = start("run", folder / "slurm.yaml", "--until", "merge")

        def disturb() -> None:
            record = json.loads(context.run.method().branch(0).job.read_text())
            cluster.call("scancel", "--signal=USR2", record["id"])
            driver.kill()
            deadline = time.monotonic() + 60
            while not cluster.hurry() and time.monotonic() < deadline:
                time.sleep(0.5)

        with once_training(context.run, (0,), disturb):
            driver.wait()
            status = start("status", context.run.root).communicate()[0]
            assert "merit 0" in status
            assert "slurm" in status
            run_pipeline(context, until="merge")
    assert weights_of(context.run.root) == undisturbed
    assert [finished(context.run, k) for k in (0, 1)] == [1, 1]


def test_a_store_that_fails_every_third_call(
    folder: Path, tiny_model: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that see nothing of the run directory but the store; the weights arrive damaged once."""
    flaky = str(Path(__file__).parent / "flaky_store")
    monkeypatch.syspath_prepend(flaky)
    import sitecustomize  # noqa: F401 — the folder's own

    path = os.pathsep.join([flaky, *filter(None, [os.environ.get("PYTHONPATH")])])
    scratch = tmp_path / "scratch"
    launch = {
        "parallel": 2,
        "store": f"flaky://{tmp_path}/store",
        "env": {"PYTHONPATH": path, "MERIT_SCRATCH": str(scratch)},
    }
    context = context_of(folder, tiny_model, "store", launch)
    run_pipeline(context, until="merge")
    assert weights_of(context.run.root) == undisturbed
    assert not list(scratch.rglob("*.safetensors")) or all(
        "theta0" in str(file) for file in scratch.rglob("*.safetensors")
    )
    assert len(list((tmp_path / "store").rglob("*.damaged-once"))) == 2


def test_two_drivers_on_one_run(folder: Path, tiny_model: Path, undisturbed: dict[str, str]) -> None:
    context = context_of(folder, tiny_model, "local", {"parallel": 2})
    from merit.run.lock import run_lock

    with run_lock(context.run), pytest.raises(InputError, match=r"another process \(pid \d+\) works on this run"):
        run_pipeline(context, until="merge")
