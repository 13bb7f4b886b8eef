"""The merge in a tracker, and one that fails: on a synthetic run, with a wandb that writes down what it is told."""

from __future__ import annotations

import logging
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from synthetic import make_run

from merit.context import RunContext
from merit.merge.step import MethodMerge
from merit.run.layout import RunDir
from merit.track import step as track
from merit.track.figures import figures
from merit.train.trackers import group_name

VARIABLES = ("WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR")


class Wandb(ModuleType):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin=__file__)
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.axes: list[tuple[str, str]] = []
        self.down = False

    def init(self, **options: Any) -> Wandb:
        if self.down:
            raise ConnectionError("no route\nto the host")
        self.started.append(options | {name: os.environ.get(name) for name in VARIABLES})
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        assert step is None  # Weights & Biases drops a step that it has had
        self.logged.append(values)

    def finish(self) -> None:
        pass

    def teardown(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in (*VARIABLES, "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return module


def merged_run(root: Path) -> RunDir:
    run = make_run(root)
    for name in ("merit", "joint", "random"):
        record = run.method(name).merge_record
        MethodMerge.model_validate_json(record.read_text(encoding="utf-8")).save(record)  # sealed, as a run's is
    return run


def opened(run: RunDir, report_to: Any) -> RunContext:
    context = RunContext.open(run.root)
    train = context.config.train.model_copy(update={"trl": {"report_to": report_to}})
    context.config = context.config.model_copy(update={"train": train})
    return context


def test_the_merge_is_one_run_in_the_group_of_the_branches(tmp_path: Path, wandb: Wandb) -> None:
    run = merged_run(tmp_path / "spring")
    context = opened(run, ["comet_ml", "wandb"])
    facts = track.run(context)
    (started,) = wandb.started
    assert (started["name"], started["project"]) == ("merge", "huggingface")  # transformers' project for branches
    assert (started["WANDB_RUN_GROUP"], started["WANDB_JOB_TYPE"]) == ("spring", "merge")
    assert started["WANDB_DIR"] == str(run.tracking)
    assert run.tracking.is_dir()
    assert wandb.axes == [("*", "round")]
    base, last = wandb.logged
    assert (base["round"], base["in_mixture/base"]) == (0, 4.21)
    assert (last["round"], last["in_mixture/merit"], last["unseen/joint_0.5"]) == (1, 2.03, 1.64)
    weights = MethodMerge.load(run.method().merge_record).weights
    assert [last[f"weight/merit/branch-{k:02d}"] for k in range(4)] == weights
    assert facts == {"figures": len(base) + len(last) - 2}
    assert not any(name in os.environ for name in VARIABLES)
    # The same run if it is told again, another one if other branches were merged.
    track.run(context)
    record = MethodMerge.load(run.method().merge_record)
    record.model_copy(update={"fingerprint": "other"}).save(run.method().merge_record)
    track.run(context)
    idents = [item["WANDB_RUN_ID"] for item in wandb.started]
    assert idents[0] == idents[1] != idents[2]


def test_variables_of_the_user_stay(tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    track.run(opened(merged_run(tmp_path / "spring"), "wandb"))
    assert (wandb.started[0]["WANDB_RUN_GROUP"], wandb.started[0]["project"]) == ("mine", "ours")
    assert os.environ["WANDB_RUN_GROUP"] == "mine"


def test_a_tracker_that_is_down_fails_no_run_and_is_tried_again(
    tmp_path: Path, wandb: Wandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.down = True
    context = opened(merged_run(tmp_path / "spring"), "wandb")
    with caplog.at_level(logging.WARNING):
        facts = track.run(context)
    assert facts["incomplete"] == {"wandb": "ConnectionError: no route to the host"}  # so the stage is not done
    assert "wandb does not have the merge (ConnectionError: no route to the host)" in caplog.text
    wandb.down = False
    assert "incomplete" not in track.run(context)


def test_which_trackers_have_it(tmp_path: Path, wandb: Wandb) -> None:
    run = merged_run(tmp_path / "spring")
    for named, wanted in (("none", []), ("clearml", []), (["mlflow", "wandb"], ["wandb", "mlflow"]), (None, [])):
        context = opened(run, named)
        assert track.trackers(context) == wanted
        assert track.STEP.wanted(context) == bool(wanted)
    assert "tensorboard" in track.trackers(opened(run, "all"))


def test_a_figure_that_changes_is_told_anew(tmp_path: Path, wandb: Wandb) -> None:
    run = merged_run(tmp_path / "spring")
    context = opened(run, "wandb")
    before = track.depends(context)
    assert track.depends(context) == before
    record = MethodMerge.load(run.method().merge_record)
    record.model_copy(update={"rounding_error": {"1": 0.5}}).save(run.method().merge_record)
    assert track.depends(context)["figures"] != before["figures"]
    assert figures(context)[1]["rounding_error/merit"] == 0.5


def test_the_group_is_the_run_directory_and_that_of_its_preparation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "spring", until="mixture")
    assert group_name(run) == group_name(run.prepare) == "spring"
    assert group_name(RunDir(tmp_path / "prepare")) == "prepare"  # a run of that name
