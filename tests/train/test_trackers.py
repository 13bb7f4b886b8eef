"""One run a branch in every tracker, grouped by the run directory; none of them needs a network here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from four_files import write_four_files
from merit.context import RunContext
from merit.data import step as mixture_stage
from merit.run.layout import RunDir
from merit.split.splitter import SplitRequest, make_partition
from merit.train import branch
from merit.train.branch import train_branch
from merit.train.step import branch_specs
from merit.train.trackers import branch_name

CONFIG = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  shout: {{path: shout.parquet}}
split: {{splitter: random, axes: 1}}
train: {{batch_tokens: 400, precision: fp32, epochs: 2, trl: {{report_to: {tracker}}}}}
"""
NAMES = ["merit-00", "merit-01"]


def train_two(folder: Path, model: Path, tracker: str) -> RunDir:
    """Two branches, one after another in this process, as a study trains its cells."""
    write_four_files(folder)
    file = folder / "merit.yaml"
    file.write_text(CONFIG.format(model=model, tracker=tracker))
    context = RunContext.open(file, output=folder / "spring")
    mixture_stage.run(context)
    method = context.methods[0]
    make_partition("random", SplitRequest(context.mixture.planned_tokens, r=1, seed=0)).save(method.dir.partition)
    before = variables()
    for spec in branch_specs(context, method):
        branch = method.dir.branch(spec.branch)
        spec.save(branch.spec)
        train_branch(context.run, branch, base=folder)
    assert variables() == before
    return context.run


def variables() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(("WANDB_", "MLFLOW_", "TENSORBOARD_"))}


def test_every_round_and_every_cell_of_a_study_has_a_name_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    write_four_files(tmp_path)
    file = tmp_path / "merit.yaml"
    file.write_text(CONFIG.format(model=tiny_model, tracker="none"))
    context = RunContext.open(file, output=tmp_path / "rounds" / "spring")  # a folder that looks like a round's
    mixture_stage.run(context)
    method, run = context.methods[0], context.run
    make_partition("random", SplitRequest(context.mixture.planned_tokens, r=1, seed=0)).save(method.dir.partition)
    spec = branch_specs(context, method)[1]
    assert branch_name(run, run.method().branch(1), spec) == "merit-01"
    cell = run.method("5eed")  # where a study keeps one
    assert branch_name(run, cell.branch(1), spec) == "merit-01-5eed"
    cut = spec.model_copy(update={"train": spec.train.model_copy(update={"rounds": 2})})
    assert branch_name(run, run.method().round(1).branch(1), cut) == "merit-01-round-1"
    assert branch_name(run, cell.round(1).branch(1), cut) == "merit-01-5eed-round-1"
    last = cut.model_copy(update={"round": 2})
    assert branch_name(run, run.method().branch(1), last) == "merit-01-round-2"


def test_tensorboard(tiny_model: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_two(tmp_path, tiny_model, "tensorboard")
    for k in range(2):
        branch = run.method().branch(k)
        events = EventAccumulator(str(branch.tensorboard)).Reload()
        assert [(item.step, item.value) for item in events.Scalars("train/loss")] == logged(run, k)
    # Below the run directory TensorBoard finds nothing else: `tensorboard --logdir RUN` shows a run a branch.
    found = {path.parent.relative_to(run.root).as_posix() for path in run.root.rglob("events.out.tfevents.*")}
    assert found == {"branches/00/tensorboard", "branches/01/tensorboard"}


def test_wandb(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    started, init = [], wandb.init

    def recorded(*arguments: Any, **options: Any) -> Any:
        found = init(*arguments, **options)
        assert found.settings.run_job_type == "branch"
        started.append((found.name, found.group, found.id))
        return found

    monkeypatch.setattr(wandb, "init", recorded)
    run = train_two(tmp_path, tiny_model, "wandb")
    assert [(name, group) for name, group, _ in started] == [(name, "spring") for name in NAMES]
    for k, (_, _, ident) in enumerate(started):
        (file,) = run.method().branch(k).root.glob("wandb/offline-run-*/*.wandb")
        assert file.name == f"run-{ident}.wandb"
    # Started again after a kill, a branch goes on in the run that it had.
    monkeypatch.setattr(branch, "trained_branch", lambda *_: None)
    train_branch(run, run.method().branch(1), base=tmp_path)
    assert started[2] == started[1] != started[0]


def test_mlflow(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    run = train_two(tmp_path, tiny_model, "mlflow")
    client = mlflow.MlflowClient()

    def runs() -> list[Any]:
        (experiment,) = [item for item in client.search_experiments() if item.name != "Default"]
        assert experiment.name == "spring"
        return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])

    assert [item.info.run_name for item in runs()] == NAMES
    # Started again after a kill, a branch has a second run of its name.
    monkeypatch.setattr(branch, "trained_branch", lambda *_: None)
    train_branch(run, run.method().branch(1), base=tmp_path)
    assert [item.info.run_name for item in runs()] == [*NAMES, NAMES[1]]
    assert {item.info.status for item in runs()} == {"FINISHED"}
    tags = {"merit.group": "spring", "merit.kind": "branch", "merit.method": "merit", "merit.branch": "1"}
    assert tags.items() <= runs()[1].data.tags.items()
    for item, k in zip(runs(), (0, 1, 1), strict=True):
        history = client.get_metric_history(item.info.run_id, "loss")
        assert [(entry.step, entry.value) for entry in history] == logged(run, k)


def test_trackio(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = train_two(tmp_path, tiny_model, "trackio")
    assert sorted(SQLiteStorage.get_runs("spring")) == NAMES
    for k, name in enumerate(NAMES):
        lines = [line for line in SQLiteStorage.get_logs("spring", name) if "train/loss" in line]
        assert [(line["train/global_step"], line["train/loss"]) for line in lines] == logged(run, k)


def logged(run: RunDir, k: int) -> list[tuple[int, Any]]:
    """The steps of a branch and their losses, by its own log."""
    lines = [json.loads(line) for line in run.method().branch(k).log.read_text().splitlines()]
    return [(line["step"], pytest.approx(line["loss"])) for line in lines]
