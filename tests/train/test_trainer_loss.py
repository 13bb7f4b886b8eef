"""What a branch minimises: the token-weighted mean over a step, whatever the micro-batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from four_files import write_four_files
from merit.context import RunContext
from merit.data import step as mixture_stage
from merit.data.mixture import Mixture
from merit.data.store import EncodedDataset
from merit.models.loading import load_model
from merit.run.layout import RunDir
from merit.train import trainer
from merit.train.branch import train_branch
from merit.train.spec import BranchResult
from merit.train.step import branch_specs

CONFIG = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  shout: {{path: shout.parquet}}
held_out_fraction: 0.2
split: {{splitter: single}}
train: {{learning_rate: 0.1, batch_tokens: {batch}, micro_batch_tokens: {micro}, precision: fp32,
        schedule: constant, warmup_ratio: 0, lora: {lora},
        weight_decay: 0, trl: {{optim: sgd, max_grad_norm: 1.0e+9}}}}
"""


def _train(
    folder: Path, model: Path, *, micro: int, lora: str = "null", batch: int = 1_000_000
) -> tuple[RunContext, BranchResult]:
    from merit.split.splitter import SplitRequest, make_partition

    write_four_files(folder)
    file = folder / "merit.yaml"
    file.write_text(CONFIG.format(model=model, micro=micro, lora=lora, batch=batch))
    context = RunContext.open(file)
    mixture_stage.run(context)
    method = context.methods[0]
    partition = make_partition("single", SplitRequest(context.mixture.planned_tokens, r=1, seed=0))
    partition.save(method.dir.partition)
    spec = branch_specs(context, method)[0]
    branch = method.dir.branch(0)
    spec.save(branch.spec)
    return context, train_branch(context.run, branch, base=folder)


def _reference_step(run: RunDir, model_folder: Path) -> tuple[dict[str, torch.Tensor], float, int]:
    """θ0 − lr · ∇ of the mean over all supervised tokens, one example at a time, by transformers' own loss."""
    model = load_model(model_folder).train()
    total, loss_sum = 0, torch.zeros((), dtype=torch.float64)
    for item in Mixture.load(run.mixture).datasets:
        stored = EncodedDataset.open(run.data(item.name))
        for row in stored.train:
            example = stored[int(row)]
            ids, labels = torch.tensor([example.encoded.input_ids]), torch.tensor([example.encoded.labels])
            loss = model(input_ids=ids, labels=labels).loss * example.encoded.supervised
            loss.backward()
            loss_sum += loss.detach().double()
            total += example.encoded.supervised
    stepped = {name: (value - 0.1 * value.grad / total).detach() for name, value in model.named_parameters()}
    return stepped, float(loss_sum) / total, total


@pytest.mark.parametrize("lora", ["null", "{r: 2, alpha: 4}"])
def test_micro_batches_run_without_padding(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: str
) -> None:
    ran: list[int] = []
    nll = trainer.task_nll
    monkeypatch.setattr(
        trainer, "task_nll", lambda model, task: ran.append(task.inputs["input_ids"].numel()) or nll(model, task)
    )
    context, result = _train(tmp_path, tiny_model, micro=100_000, lora=lora)
    tokens = sum(item.train.tokens for item in Mixture.load(context.run.mixture).datasets)
    assert result.steps == len(ran) == 1
    assert ran[0] < tokens


def test_micro_batches_change_no_step(tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for micro in (100_000, 150):
        (tmp_path / str(micro)).mkdir()
        context, result = _train(tmp_path / str(micro), tiny_model, micro=micro, batch=350)
        branch = context.run.method().branch(0)
        found[micro] = result, load_file(branch.checkpoint / "model.safetensors")
    (one, whole), (many, parts) = found.values()
    assert (one.steps, one.examples, one.supervised_tokens) == (many.steps, many.examples, many.supervised_tokens)
    assert one.steps > 2
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro", [100_000, 150])
def test_one_step_is_the_token_weighted_gradient(tiny_model: Path, tmp_path: Path, micro: int) -> None:
    context, result = _train(tmp_path, tiny_model, micro=micro)
    stepped, loss, tokens = _reference_step(context.run, tiny_model)
    assert result.steps == 1
    assert result.supervised_tokens == tokens
    assert result.final_loss == pytest.approx(loss, rel=1e-5)
    trained = load_file(context.run.method().branch(0).checkpoint / "model.safetensors")
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, stepped[name], rtol=1e-5, atol=1e-6)


def test_lora_leaves_a_dense_checkpoint_that_is_init_plus_the_update(tiny_model: Path, tmp_path: Path) -> None:
    lora = "{r: 2, alpha: 4}"
    context, result = _train(tmp_path, tiny_model, micro=100_000, lora=lora)
    branch = context.run.method().branch(0)
    adapter = load_file(branch.root / "adapter" / "adapter_model.safetensors")
    dense = load_file(branch.checkpoint / "model.safetensors")
    init = load_file(tiny_model / "model.safetensors")
    assert dense.keys() == init.keys()
    name = "model.layers.0.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(dense[f"{name}.weight"], init[f"{name}.weight"] + 2.0 * b @ a)
    untouched = "model.embed_tokens.weight"
    torch.testing.assert_close(dense[untouched], init[untouched], rtol=0, atol=0)
    assert json.loads(branch.done.read_text())["files"] == result.files


def test_a_finished_branch_is_not_trained_again(tiny_model: Path, tmp_path: Path) -> None:
    context, result = _train(tmp_path, tiny_model, micro=100_000)
    branch = context.run.method().branch(0)
    changed = branch.checkpoint / "model.safetensors"
    before = changed.stat().st_mtime_ns
    assert train_branch(context.run, branch, base=tmp_path) == result
    assert changed.stat().st_mtime_ns == before
