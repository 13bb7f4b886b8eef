"""What a plan says that rounds move, against the bytes that leave the store of a real run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from merit.context import RunContext
from merit.models.checkpoint import Checkpoint
from merit.pipeline import run_pipeline
from merit.plan.costs import model_facts
from merit.plan.estimate import Estimate

RECIPE = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet}}
held_out_fraction: 0.25
split: {{splitter: random, axes: 1}}
train: {{rounds: 2, epochs: 1, batch_tokens: 200, precision: fp32}}
launch: {{store: "counted://{store}", parallel: 2}}
"""
COUNTED = Path(__file__).parent / "counted_store"
K = 2


@pytest.fixture
def counted(four_files: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a model whose weights outweigh its tokenizer, with a store that counts."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    config = LlamaConfig.from_pretrained(tiny_model, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    config.head_dim = 32
    LlamaForCausalLM(config).save_pretrained(model)
    file = four_files / "merit.yaml"
    file.write_text(RECIPE.format(model=model, store=tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(COUNTED), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    monkeypatch.setenv("MERIT_SCRATCH", str(tmp_path / "scratch"))
    spec = importlib.util.spec_from_file_location("counted_store", COUNTED / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return file


def test_the_plan_counts_what_the_store_moves(counted: Path, tmp_path: Path) -> None:
    context = RunContext.open(counted)
    run_pipeline(context, until="merge")
    moved = [line.split(" ", 2) for line in (tmp_path / "counted").read_text().splitlines()]

    def bytes_of(part: str, way: str = "get") -> int:
        return sum(int(size) for what, size, name in moved if what == way and part in name)

    facts = model_facts(Checkpoint.open(context.model.path), None)
    plan = Estimate(context.config, context.mixture, facts).plan.traffic
    assert plan is not None
    # Both branches share this machine: what one has fetched of θ0 and the merges is there for the other.
    models = K * bytes_of("/theta0/")
    assert models == pytest.approx(plan.theta0_out + plan.merges_out, rel=0.05)
    assert bytes_of("/checkpoint/") == pytest.approx(plan.checkpoints_back, rel=0.05)
    assert bytes_of("/training/") == pytest.approx(plan.states_out, rel=0.05)
    assert bytes_of("/training/", "put") == pytest.approx(plan.states_out, rel=0.05)  # once, when a round ends
    assert bytes_of("") + models - bytes_of("/theta0/") == pytest.approx(plan.total, rel=0.05)
