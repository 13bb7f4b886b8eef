"""The learning rate: positive in every step, and in all runs the same over the same share of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from cli.command import Command
from four_files import write_four_files
from merit.run.layout import RunDir
from merit.train.trainer import mean_rate

SCHEDULES = ["linear", "cosine", "constant", "constant_with_warmup"]


def rates(schedule: str, steps: int, warmup: float = 0.03) -> list[float]:
    return [mean_rate(schedule, warmup, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_every_step_learns_and_every_run_learns_as_much(schedule: str, warmup: float) -> None:
    means = []
    for steps in (*range(1, 60), 333, 1000):
        found = rates(schedule, steps, warmup)
        assert all(0 < rate <= 1 + 1e-12 for rate in found)
        means.append(sum(found) / steps)
    assert means == pytest.approx([means[0]] * len(means))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_long_run_has_the_rates_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=300, num_training_steps=10_000)
    ours = rates(schedule, 10_000)
    for step in range(0, 10_000, 500):
        assert ours[step] == pytest.approx(theirs.lr_lambdas[0](step), abs=2e-3)


def test_a_short_warm_up_takes_its_share_of_the_first_step() -> None:
    """Of 20 steps 3% are 0.6 of the first: the rate rises there, and is 1 in the other 0.4."""
    assert rates("constant_with_warmup", 20)[:2] == pytest.approx([0.6 / 2 + 0.4, 1.0])
    assert rates("constant_with_warmup", 5)[:2] == pytest.approx([0.15 / 2 + 0.85, 1.0])


def test_joint_training_and_branches_warm_up_alike(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_four_files(tmp_path)
    (tmp_path / "merit.yaml").write_text(f"""
model: {tiny_model}
mixture: {{chat: {{path: chat.jsonl}}, shout: {{path: shout.parquet}}}}
split: {{splitter: random, axes: 1}}
baselines: {{joint: {{splitter: single}}}}
train: {{learning_rate: 1e-3, batch_tokens: 600, warmup_ratio: 0.1, precision: fp32}}
evaluate: {{held_out: 1, generate: 0}}
output: run
""")
    done = Command(capsys)("run", tmp_path / "merit.yaml")
    assert done.code == 0, done.err
    run = RunDir(tmp_path / "run")
    branches = [run.method().branch(0), run.method().branch(1), run.method("joint").branch(0)]
    lengths = set()
    for branch in branches:
        lines = [json.loads(line) for line in branch.log.read_text().splitlines()]
        logged = [line["learning_rate"] for line in lines if "learning_rate" in line]
        lengths.add(len(logged))
        assert logged == pytest.approx([1e-3 * rate for rate in rates("cosine", len(logged), 0.1)])
    assert len(lengths) > 1
