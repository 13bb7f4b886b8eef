"""θ0 as it is published stores what branches do not: other names, old buffers, whole numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from finished_run import RECIPE, finish_run, write_data
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from merit.base.errors import InputError
from merit.cli.main import run
from merit.diagnose.checks.displacement import displacement, measure_moves
from merit.diagnose.live import LiveModel
from merit.merge.ray import Ray, norm
from merit.models.loading import load_model

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
LLAMA = LlamaConfig(**SIZES)
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16)


def _buffers(tensors):
    return tensors | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.position_ids": torch.arange(8)[None],
        "mtp.fc.weight": torch.ones(4, 4),
    }


def _first_file(tensors):
    """GPT-2's first file: no prefix, and masks beside the weights."""
    old = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    return old | {"h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()}


@pytest.mark.parametrize(
    ("kind", "config", "change"), [(LlamaForCausalLM, LLAMA, _buffers), (GPT2LMHeadModel, GPT2, _first_file)]
)
def test_models_are_set_and_compared_whatever_the_base_stores(tmp_path, kind, config, change):
    states = {}
    for seed, label in enumerate(("base", "branch 0", "branch 1")):
        torch.manual_seed(seed)
        model = kind(config)
        model.save_pretrained(tmp_path / label)
        states[label] = {name: value.detach().clone() for name, value in model.named_parameters()}
    file = tmp_path / "base/model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)
    folders = {label: tmp_path / label for label in states}
    live = LiveModel(load_model(tmp_path / "base"), folders)
    live.set({"base": 0.5, "branch 1": 0.5})
    for name, value in live.model.named_parameters():
        torch.testing.assert_close(value.cpu(), (states["base"][name] + states["branch 1"][name]) / 2)

    far = {
        label: sum(float((states[label][n] - v).double().square().sum()) for n, v in states["base"].items()) ** 0.5
        for label in ("branch 0", "branch 1")
    }
    moved = displacement(measure_moves(live.aligned)).models
    assert {one.model: one.total for one in moved} == pytest.approx(far)

    ray = Ray(load_model(tmp_path / "base"))
    assert norm(ray.step(tmp_path / "base")) == 0
    assert norm(ray.step(tmp_path / "branch 0")) == pytest.approx(far["branch 0"])


def test_experts_that_are_fused_while_loading_are_named(tmp_path):
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_key_value_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not stored under its own name and shape; such models cannot be diagnosed"):
        LiveModel(load_model(tmp_path), {"base": tmp_path, "merge": tmp_path})
    with pytest.raises(InputError, match="experts that are fused while loading"):
        Ray(load_model(tmp_path)).step(tmp_path)


def test_diagnose_of_a_run_from_such_a_base(tiny_model: Path, tmp_path: Path, capsys):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    file = base / "model.safetensors"
    save_file(_buffers(load_file(file)), file, metadata={"format": "pt"})
    write_data(tmp_path)
    (tmp_path / "merit.yaml").write_text(RECIPE.format(model=base))
    made = finish_run(tmp_path / "merit.yaml")
    assert run(["diagnose", str(made.root), "--checks", "lmc,displacement"]) == 0, capsys.readouterr().err
    found = json.loads(made.diagnostic("displacement").read_text())
    assert [model["model"] for model in found["models"]] == ["branch 0", "branch 1", "merge", "joint"]
