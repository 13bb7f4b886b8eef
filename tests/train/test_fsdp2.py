"""A branch whose weights, gradients and optimizer are sharded: FSDP2 as docs/cluster.md configures it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from four_files import write_four_files
from merit.cli.main import run as merit
from merit.run.layout import BranchDir, RunDir
from merit.train.spec import BranchResult

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
RECIPE = """
model: {model}
mixture: {{chat: {{path: chat.jsonl}}, copy: {{path: copy.json}}, last: {{path: last.csv}}}}
held_out_fraction: 0.25
split: {{splitter: single}}
train: {{learning_rate: 3.0e-3, batch_tokens: 250, precision: fp32, checkpoint_minutes: 1.0e-6}}
"""


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> BranchDir:
    """A branch that one process has trained. Copy its run before changing it."""
    folder = tmp_path_factory.mktemp("fsdp2")
    write_four_files(folder)
    (folder / "merit.yaml").write_text(RECIPE.format(model=tiny_model))
    assert merit(["run", str(folder / "merit.yaml"), "--until", "train"]) == 0
    return RunDir(folder / "runs" / "merit").method().branch(0)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The accelerate configuration of the page."""
    block = re.search(r"```yaml\n(# accelerate-fsdp\.yaml\n.*?)```", PAGE.read_text(), flags=re.S)
    file = tmp_path_factory.mktemp("accelerate") / "accelerate-fsdp.yaml"
    file.write_text(block[1])
    return file


def shard(alone: BranchDir, configuration: Path, folder: Path, **env: str) -> tuple[BranchDir, int]:
    """Trains the branch again in two processes, in a copy of its run; and the command's exit code."""
    run = alone.root.parents[1]
    if not folder.exists():
        shutil.copytree(run, folder)
        branch = RunDir(folder).method().branch(0)
        shutil.rmtree(branch.checkpoint)
        for path in (branch.done, branch.log):
            path.unlink()
    command = [sys.executable, "-m", "merit", "train", str(folder), "--branch", "0", "--method", "merit"]
    command += ["--processes", "2", "--accelerate", str(configuration)]
    shim = str(Path(__file__).parent / "fsdp_on_cpu")
    paths = [shim, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true"} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    return RunDir(folder).method().branch(0), done.returncode


@pytest.fixture(scope="module")
def sharded(alone: BranchDir, configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> BranchDir:
    branch, code = shard(alone, configuration, tmp_path_factory.mktemp("sharded") / "run")
    assert code == 0
    return branch


def steps(branch: BranchDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in branch.log.read_text().splitlines()]


def test_shards_train_on_the_same_tokens_to_the_same_loss(alone: BranchDir, sharded: BranchDir) -> None:
    one, two = BranchResult.load(alone.done), BranchResult.load(sharded.done)
    assert (two.supervised_tokens, two.examples, two.steps) == (one.supervised_tokens, one.examples, one.steps)
    for first, second in zip(steps(alone), steps(sharded), strict=True):
        assert second["supervised_tokens"] == first["supervised_tokens"]
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-4)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


def test_the_checkpoint_is_gathered_to_one_folder_as_one_process_writes_it(
    alone: BranchDir, sharded: BranchDir
) -> None:
    one, two = (sorted(path.name for path in branch.checkpoint.iterdir()) for branch in (alone, sharded))
    assert one == two
    files = [branch.checkpoint / "model.safetensors" for branch in (alone, sharded)]
    heads = [file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")] for file in files]
    assert heads[0] == heads[1]  # names, shapes, dtypes and places: only the numbers may differ
    first, second = map(load_file, files)
    for name, values in first.items():
        assert second[name] == pytest.approx(values, abs=1e-5), name


def test_a_killed_rank_resumes_to_the_same_bits(
    alone: BranchDir, sharded: BranchDir, configuration: Path, tmp_path: Path
) -> None:
    branch, code = shard(alone, configuration, tmp_path / "run", KILL_AFTER_CHECKPOINT="2")
    assert code != 0
    assert not branch.done.exists()
    parts = branch.training_state / "checkpoint-2" / "pytorch_model_fsdp_0"
    assert len(list(parts.glob("__*.distcp"))) == 2  # each rank wrote its own shard
    branch, code = shard(alone, configuration, tmp_path / "run")
    assert code == 0
    assert [entry["step"] for entry in steps(branch)] == [entry["step"] for entry in steps(sharded)]
    file = "checkpoint/model.safetensors"
    assert (branch.root / file).read_bytes() == (sharded.root / file).read_bytes()
