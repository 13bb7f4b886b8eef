"""A finished run, made in this process: its stages for data, conflict, split and merge, and a training loop of our own
instead of jobs, which would cost ten seconds each.

A module of its own and no conftest.py: two files of that name would hide each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merit.run.layout import RunDir

RECIPE = """
model: {model}
mixture:
  copy: {{path: copy.jsonl}}
  first: {{path: first.jsonl}}
  last: {{path: last.jsonl}}
  shout: {{path: shout.jsonl}}
held_out_fraction: 0.3
calibration: {{examples: 8}}
split: {{splitter: pca, axes: 1}}
train: {{precision: fp32}}
baselines:
  joint: {{splitter: single}}
diagnose: {{examples: 4, points: 5, noise: [0.0, 0.1, 0.5], noise_seeds: 2, grid: 3}}
"""


_made: dict[Path, RunDir] = {}


@pytest.fixture(scope="session")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that has been merged: two branches, joint training as a baseline. Copy it before changing anything."""
    if tiny_model not in _made:  # a fixture that modules import is set up once for each of them
        folder = tmp_path_factory.mktemp("finished")
        write_data(folder)
        recipe = folder / "merit.yaml"
        recipe.write_text(RECIPE.format(model=tiny_model))
        _made[tiny_model] = finish_run(recipe)
    return _made[tiny_model]


def write_data(folder: Path, rows: int = 24) -> None:
    """Four tasks on the same words."""
    words = ["red", "green", "blue", "cat", "dog", "bird", "one", "two", "three", "four", "five", "run", "jump", "sun"]
    answers: dict[str, Callable[[list[str]], str]] = {
        "copy": " ".join,
        "first": lambda some: some[0],
        "last": lambda some: some[-1],
        "shout": lambda some: " ".join(some).upper(),
    }
    for task, answer in answers.items():
        lines = []
        for row in range(rows):
            some = [words[(row * step + len(task)) % len(words)] for step in (1, 5, 7)] + [words[row % 7]]
            lines.append(json.dumps({"prompt": f"{task} {' '.join(some)}", "completion": answer(some)}))
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")


def finish_run(recipe: Path, *, steps: int = 12, rate: float = 2e-3) -> RunDir:
    """Every stage up to `merge` of a recipe."""
    from merit.base.files import write_text
    from merit.config.run import dump_config
    from merit.conflict import step as conflict
    from merit.context import RunContext
    from merit.data import step as mixture
    from merit.merge import step as merge
    from merit.split import step as split

    context = RunContext.open(recipe)
    write_text(context.run.config, dump_config(context.config, context.base))
    for stage in (mixture, conflict, split):
        stage.run(context)
    for method in context.trained:
        train_method(context, method, steps=steps, rate=rate)
    merge.run(context)
    return context.run


def train_method(context: Any, method: Any, *, steps: int, rate: float) -> None:
    """Plain AdamW on each group's training rows, all of them in every step."""
    from merit.base.files import sha256_file
    from merit.base.record import fingerprint
    from merit.data.store import EncodedDataset
    from merit.models.loading import load_model
    from merit.split.partition import Partition
    from merit.train.curvature import measure_branch
    from merit.train.spec import BranchResult
    from merit.train.step import ask_for, branch_specs, measured_examples

    specs = branch_specs(context, method)
    for k, group in enumerate(Partition.load(method.dir.partition).groups):
        rows = []
        for name in group.datasets:
            data = EncodedDataset.open(context.run.data(name))
            rows += [data[int(row)].encoded for row in data.train]
        model = load_model(context.model.path).train()
        tune(model, rows, steps=steps, rate=rate)
        branch = method.dir.branch(k)
        specs[k].save(branch.spec)
        model.save_pretrained(branch.checkpoint)
        context.tokenizer.save_pretrained(branch.checkpoint)
        files = {f"checkpoint/{file.name}": sha256_file(file) for file in branch.checkpoint.iterdir()}
        BranchResult(
            fingerprint=fingerprint(specs[k]),
            supervised_tokens=group.tokens,
            examples=len(rows) * steps,
            steps=steps,
            seconds=1.0,
            final_loss=None,
            files=files,
        ).save(branch.done)
        if (examples := measured_examples(context, method)) is not None:
            ask_for(branch, examples)
            measure_branch(context.run, branch)


def tune(model: Any, rows: list[Any], *, steps: int, rate: float) -> float:
    """Full-batch AdamW; returns the last loss."""
    import torch

    from merit.compute.losses import supervised_nll

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = supervised_nll(model, rows).nll.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
