"""From what a later round goes on, and what it removes: its own branch of the round before, whole and at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merit.base.errors import StageError
from merit.config.sections import ModelConfig, TrainConfig
from merit.run.layout import BranchDir, MethodDir, RunDir
from merit.train.carry import drop_state_before, go_on
from merit.train.checkpoints import Counters, mark_whole
from merit.train.spec import BranchData, BranchSpec

STEPS = 6  # over all rounds


def spec_of(number: int, rounds: int) -> BranchSpec:
    return BranchSpec(
        method="merit",
        branch=0,
        model=ModelConfig(path="org/name"),
        model_fingerprint="",
        train=TrainConfig(rounds=rounds),
        data=[BranchData(name="a", data="data/a.arrow", weight=1.0, fingerprint="")],
        max_length=64,
        planned_tokens=2,
        seed=0,
        round=number,
    )


def trained_to(branch: BranchDir, step: int) -> Path:
    """A whole training checkpoint."""
    folder = branch.training_state / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": STEPS}))
    (folder / "model.safetensors").write_bytes(b"of the branch")
    mark_whole(branch, step, Counters(supervised_tokens=step))
    return folder


def branch_of(method: MethodDir, number: int, rounds: int) -> BranchDir:
    return (method if number == rounds else method.round(number)).branch(0)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "model.safetensors").write_bytes(b"of the merge")
    return tmp_path / "merge"


@pytest.mark.parametrize("number", [2, 3])
def test_a_run_may_lie_in_a_folder_of_any_name(tmp_path: Path, start: Path, number: int) -> None:
    """`rounds` is also what merit calls a folder of its own."""
    run = RunDir(tmp_path / "rounds" / "mine")
    other = trained_to(MethodDir(tmp_path).round(number - 1).branch(0), 1)  # of somebody else
    ours = trained_to(branch_of(run.method(), number - 1, 3), 2 * (number - 1))
    branch = branch_of(run.method(), number, 3)
    found = go_on(run, branch, spec_of(number, 3), start)
    assert found is not None
    assert found[0] == branch.training_state / ours.name
    assert (found[0] / "model.safetensors").read_bytes() == b"of the merge"
    assert found[1].supervised_tokens == 2 * (number - 1)
    drop_state_before(branch, spec_of(number, 3))
    assert not ours.exists()
    assert other.exists()


def test_a_round_goes_on_from_the_end_of_the_one_before_or_not_at_all(tmp_path: Path, start: Path) -> None:
    """Where the last checkpoint is damaged, the one before it would train some steps twice."""
    run = RunDir(tmp_path / "run")
    before = run.method().round(1).branch(0)
    trained_to(before, 2)
    last = trained_to(before, 3)
    (last / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StageError, match="the training state that round 1 ended with is damaged or gone"):
        go_on(run, run.method().branch(0), spec_of(2, 2), start)
