"""The same run on every engine, disturbed: a machine lost, a job requeued, a failing store. The bits stay the same."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runs import HEAD, rows_of, start, weights_of

import warm
from apart import apart
from four_files import write_four_files
from merit.base.errors import InputError, StageError
from merit.base.files import read_json
from merit.base.locks import is_locked
from merit.context import RunContext
from merit.pipeline import run_pipeline
from merit.run.events import read_events
from merit.run.layout import RunDir

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
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


ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # as the undisturbed run's jobs have: the same bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines")
    write_four_files(path)
    return path


def context_of(folder: Path, model: Path, name: str, launch: dict[str, Any], output: Path | None = None) -> RunContext:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(model=model, launch=json.dumps(launch)))
    return RunContext.open(file, output=output)


@pytest.fixture(scope="module")
def local(folder: Path, tiny_model: Path) -> RunDir:
    """A run on this machine that nothing happens to."""
    context = context_of(folder, tiny_model, "local", {"parallel": 2})
    with warm.jobs():  # those of the tests start as everywhere
        run_pipeline(context, until="evaluate")
    return context.run


@pytest.fixture(scope="module")
def undisturbed(local: RunDir) -> dict[str, str]:
    """The weights of all its models."""
    return weights_of(local.root)


@contextlib.contextmanager
def once_training(run: RunDir, branches: tuple[int, ...], disturb: Callable[[], None]) -> Iterator[None]:
    """Calls `disturb` as soon as every one of `branches` has a checkpoint."""
    stop = threading.Event()
    done: list[bool] = []

    def watch() -> None:
        while not stop.wait(0.05):
            if all(has_checkpoint(run, k) for k in branches):
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


def has_checkpoint(run: RunDir, k: int) -> bool:
    """Whether branch `k` has a whole one."""
    return any(run.method().branch(k).training_state.glob("checkpoint-*/merit.json"))


def finished(run: RunDir, job: str) -> int:
    """How often a job ended well."""
    return sum(event["event"] == "end" and event["stage"] == job for event in read_events(run.events))


def trained(run: RunDir) -> list[int]:
    """How often each branch was trained to its end."""
    return [finished(run, f"train merit {k}") for k in (0, 1)]


def evaluate_with_jobs(context: RunContext) -> list[dict[str, Any]]:
    """The rows of the table, its models measured by two jobs on the cluster; without the seconds of training."""
    context.config = context.config.model_copy(
        update={"launch": context.config.launch.model_copy(update={"parallel": 2})}
    )
    run_pipeline(context, until="evaluate")
    assert [finished(context.run, f"evaluate worker {worker}") for worker in (0, 1)] == [1, 1]
    return rows_of(context.run)


def lose_a_machine_of_ray(folder: Path, model: Path) -> tuple[list[dict[str, Any]], Path]:
    """The rows of the table, and the run directory."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        spot = cluster.add_node(num_cpus=1)
        launch = {"engine": "ray", "retries": 0, "ray": {"address": cluster.address}}
        context = context_of(folder, model, "ray", launch)
        with once_training(context.run, (0, 1), lambda: cluster.remove_node(spot, allow_graceful=False)):
            run_pipeline(context, until="merge")
        cluster.add_node(num_cpus=1)
        return evaluate_with_jobs(context), context.run.root
    finally:
        cluster.shutdown()


def test_ray_loses_a_machine(folder: Path, tiny_model: Path, local: RunDir, undisturbed: dict[str, str]) -> None:
    rows, root = apart(lose_a_machine_of_ray, folder, tiny_model)
    assert rows == rows_of(local)
    assert weights_of(root) == undisturbed
    assert trained(RunDir(root)) == [1, 1]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_slurm_requeues_a_job_and_the_driver_dies(
    folder: Path, tiny_model: Path, local: RunDir, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert evaluate_with_jobs(context) == rows_of(local)
    assert weights_of(context.run.root) == undisturbed
    assert trained(context.run) == [1, 1]


def test_a_store_that_fails_every_third_call(
    folder: Path, tiny_model: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Machines that see nothing of the run directory but the store; the weights arrive damaged once."""
    flaky = str(Path(__file__).parent / "flaky_store")
    runpy.run_path(f"{flaky}/sitecustomize.py")  # by its path: this process may have another module of the name
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


def test_another_machine_goes_on_from_the_store(
    folder: Path, tiny_model: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Both branches are killed midway, and all that the first machine had is gone: its run, its scratch folder."""
    (tmp_path / "often").mkdir()
    often = "import merit.train.staging as job\njob._SYNC_SECONDS = 0.2\n"
    (tmp_path / "often" / "sitecustomize.py").write_text(often)
    path = os.pathsep.join([str(tmp_path / "often"), *filter(None, [os.environ.get("PYTHONPATH")])])
    store = tmp_path / "store" / "run"

    def machine(name: str) -> RunContext:
        launch = {
            "retries": 0,
            "store": f"file://{tmp_path}/store",
            "env": ONE_THREAD | {"PYTHONPATH": path, "MERIT_SCRATCH": str(tmp_path / name / "scratch")},
        }
        return context_of(folder, tiny_model, name, launch, output=tmp_path / name / "run")

    def kill(k: int) -> None:
        os.killpg(int(read_json(first.run.method().branch(k).job)["id"]), signal.SIGKILL)

    first = machine("first")
    with contextlib.ExitStack() as stack:
        for k in (0, 1):  # each at its own first checkpoint
            stack.enter_context(once_training(RunDir(store), (k,), partial(kill, k)))
        with pytest.raises(StageError, match=r"(merit branch \d failed .SIGKILL.*){2}"):
            run_pipeline(first, until="merge")
    locks = [*(tmp_path / "first").rglob("lock"), *(tmp_path / "first").rglob("remote.lock")]
    while any(is_locked(lock) for lock in locks):  # the trainer ends soon after the job that started it
        time.sleep(0.1)
    shutil.rmtree(tmp_path / "first")
    assert not list(store.rglob("DONE"))

    second = machine("second")
    run_pipeline(second, until="merge")
    assert weights_of(second.run.root) == undisturbed
    for k in (0, 1):
        assert f"branch {k} resumes from checkpoint-" in second.run.method().branch(k).output.read_text()


def test_two_drivers_on_one_run(folder: Path, tiny_model: Path, undisturbed: dict[str, str]) -> None:
    context = context_of(folder, tiny_model, "local", {"parallel": 2})
    from merit.run.guard import run_lock

    with run_lock(context.run), pytest.raises(InputError, match=r"another process \(pid \d+\) works on this run"):
        run_pipeline(context, until="merge")
