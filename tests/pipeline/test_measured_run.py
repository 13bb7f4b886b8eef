"""The sketch of a branch's inputs: measured by the branch's job, on a store, after a kill, late, and when adopted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from runs import HEAD
from safetensors.torch import load_file, save_file

from four_files import write_four_files
from merit.base.errors import InputError
from merit.base.record import fingerprint
from merit.cli.main import run as merit
from merit.context import RunContext
from merit.handover.adopt import adopt_branch
from merit.models.input_sketch import InputSketch, sketch_file
from merit.pipeline import run_pipeline
from merit.run.layout import BranchDir, RunDir
from merit.train import branch as training
from merit.train import curvature
from merit.train.job import Ranks, run_branch_job
from merit.train.spec import BranchResult, BranchSpec, MeasureSpec, damaged_files

SKETCH = "checkpoint/curvature/inputs.safetensors"


def recipe(folder: Path, model: Path, **sections: object) -> RunContext:
    """A run of two branches in `folder`."""
    text = HEAD.format(model=model) + "train: {epochs: 1, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32}\n"
    (folder / "merit.yaml").write_text(text + yaml.safe_dump(sections) if sections else text)
    return RunContext.open(folder / "merit.yaml", output=folder / "run")


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_jobs: None) -> Path:
    """The folder of a run whose branches are trained for a merge that wants no sketch. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("measured")
    write_four_files(folder)
    run_pipeline(recipe(folder, tiny_model), until="train")
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def branch_of(folder: Path, k: int) -> BranchDir:
    return RunDir(folder / "run").method().branch(k)


def plan_only(branch: BranchDir, examples: int = 8) -> None:
    """As if the branch had been planned, to be measured too, and nothing more."""
    shutil.rmtree(branch.checkpoint)
    branch.done.unlink()
    MeasureSpec(examples=examples).save(branch.measure)


def check_whole(branch: BranchDir, examples: int) -> InputSketch:
    sketch = InputSketch.open(branch.checkpoint, branch=fingerprint(BranchSpec.load(branch.spec)))
    assert sketch is not None
    assert sketch.facts.wanted == examples
    assert SKETCH in BranchResult.load(branch.done).files
    assert not damaged_files(branch)
    assert not branch.trained.exists()
    return sketch


def test_nothing_is_measured_that_no_rule_wants(trained: Path) -> None:
    for k in (0, 1):
        branch = branch_of(trained, k)
        assert not branch.measure.exists()
        assert not sketch_file(branch.checkpoint).exists()
        assert not branch.measured.exists()


def test_a_job_killed_while_it_measures_does_not_train_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = branch_of(copied, 0)
    plan_only(branch)

    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(curvature, "_measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_branch_job(copied / "run", "merit", 0)
    assert branch.trained.is_file()
    assert not branch.done.exists()
    weights = (branch.checkpoint / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(training, "_make_trainer", None)  # a training would fail
    result = run_branch_job(copied / "run", "merit", 0)
    assert (branch.checkpoint / "model.safetensors").stat().st_mtime_ns == weights
    assert result == BranchResult.load(branch.done)
    check_whole(branch, 8)


def test_branches_of_several_processes_are_measured(copied: Path) -> None:
    branch = branch_of(copied, 0)
    plan_only(branch)
    run_branch_job(copied / "run", "merit", 0, Ranks(processes=2))
    sketch = check_whole(branch, 8)
    assert {layer.split(".")[-2] for layer in sketch.facts.layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_a_store_moves_the_sketch(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The jobs see nothing but the store; what comes back is checked like weights."""
    for file in trained.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    launch = {"store": f"file://{tmp_path}/store", "env": {"MERIT_SCRATCH": str(tmp_path / "scratch")}}
    merge = {"weights": "regmean", "curvature_examples": 8}
    run_pipeline(recipe(tmp_path, tiny_model, launch=launch, merge=merge), until="train")
    for k in (0, 1):
        check_whole(branch_of(tmp_path, k), 8)
        assert not branch_of(tmp_path, k).measured.exists(), "it was measured where it was trained"
    assert len(list((tmp_path / "store").rglob("inputs.safetensors"))) == 2


def test_other_examples_measure_again_and_train_nothing(copied: Path, tiny_model: Path) -> None:
    def measured(examples: int) -> list[int]:
        merge = {"weights": "regmean", "curvature_examples": examples}
        baselines = {"joint": {"splitter": "single"}}
        run_pipeline(recipe(copied, tiny_model, merge=merge, baselines=baselines), until="train")
        joint = RunDir(copied / "run").method("joint").branch(0)
        assert joint.done.is_file()
        assert not sketch_file(joint.checkpoint).exists(), "a single branch is its own merge"
        return [check_whole(branch_of(copied, k), examples).file.stat().st_mtime_ns for k in (0, 1)]

    weights = [(branch_of(copied, k).checkpoint / "model.safetensors").stat().st_mtime_ns for k in (0, 1)]
    first, again, other = measured(8), measured(8), measured(6)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert weights == [(branch_of(copied, k).checkpoint / "model.safetensors").stat().st_mtime_ns for k in (0, 1)]


def test_a_damaged_sketch_is_measured_again(copied: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = recipe(copied, tiny_model, merge={"weights": "regmean", "curvature_examples": 8})
    run_pipeline(context, until="train")
    file = sketch_file(branch_of(copied, 1).checkpoint)
    file.write_bytes(file.read_bytes()[:-5])
    context.run.stage("train").unlink()
    run_pipeline(context, until="train")
    check_whole(branch_of(copied, 1), 8)
    assert "merit measures the branch again" in caplog.text


def test_an_adopted_branch_brings_its_sketch_or_is_measured(
    copied: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = recipe(copied, tiny_model, merge={"weights": "regmean", "curvature_examples": 8})
    run_pipeline(context, until="train")
    branch, out = branch_of(copied, 1), tmp_path / "out"
    sketch = check_whole(branch, 8)
    layer = "model.layers.1.mlp.down_proj.weight"
    before = sketch.of(layer)
    shutil.copytree(branch.checkpoint, out)
    tokens = BranchResult.load(branch.done).supervised_tokens

    adopt_branch(context, "merit", 1, out, tokens=tokens, redo=True)
    after = check_whole(branch, 8).of(layer)
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after[0], before[0])

    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] += 0.01
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="was measured on other weights"):
        adopt_branch(context, "merit", 1, out, tokens=tokens, redo=True)
    adopt = ["adopt", str(context.run.root), "1", str(out), "--tokens", str(tokens), "--redo"]
    assert merit(adopt) == 2
    assert "was measured on other weights" in capsys.readouterr().err
    check_whole(branch, 8)  # as it was

    shutil.rmtree(out / "curvature")
    adopt_branch(context, "merit", 1, out, tokens=tokens, redo=True)
    assert not sketch_file(branch.checkpoint).exists()
    run_pipeline(context, until="train")
    check_whole(branch, 8)
    assert BranchResult.load(branch.done).adopted
