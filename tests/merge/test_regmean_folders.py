"""RegMean of folders: the engine reads the branches' sketches, solves every linear layer, and averages the rest."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from merge_folders import read
from transformers import LlamaConfig, LlamaForCausalLM

from merit.base.errors import InputError
from merit.cli.merge_command import Merging, merge_models, verify_models
from merit.merge.average import merge_checkpoints
from merit.models.input_sketch import LowRank, SketchFacts, sketch_file, write_sketch
from merit.models.source import weights_fingerprint

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
WEIGHTS = [3.0, 1.0]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def sketch(folder, seed):
    """A sketch of random inputs at full rank for every linear layer; returns their Gram matrices as it has them."""
    random = np.random.default_rng(seed)
    grams = {}
    inputs = {}
    layers = {name: value for name, value in read(folder).items() if any(part in name for part in LAYERS)}
    for number, (name, value) in enumerate(layers.items()):
        x = random.standard_normal((200, value.shape[1])) * random.uniform(0.1, 3, value.shape[1])
        inputs[str(number)] = LowRank.of(torch.from_numpy(x.T @ x / len(x)), value.shape[1])
        rows, rest = inputs[str(number)].rows_and_rest()
        grams[name] = (rows.T @ rows + torch.diag(rest)).numpy()
    facts = SketchFacts(
        branch="x", weights=weights_fingerprint(folder), wanted=4, examples=4, tokens=200,
        layers={name: str(number) for number, name in enumerate(layers)},
    )  # fmt: skip
    write_sketch(folder, facts, inputs)
    return grams


@pytest.fixture
def branches(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    base.save_pretrained(tmp_path / "base")
    for seed in range(2):
        torch.manual_seed(seed + 1)
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        model.load_state_dict(
            {name: value + 0.02 * torch.randn_like(value) for name, value in base.state_dict().items()}
        )
        model.save_pretrained(tmp_path / f"b{seed}")
    return tmp_path


def test_every_linear_layer_is_solved(branches):
    grams = [sketch(branches / f"b{k}", k) for k in range(2)]
    folders = [branches / "b0", branches / "b1"]
    result = merge_checkpoints(folders, WEIGHTS, {1.0: branches / "out"}, base=branches / "base", rule="regmean")
    assert (result.ridge, result.solved) == (0.01, 7)
    base, states = read(branches / "base"), [read(folder) for folder in folders]
    shares = [0.75, 0.25]
    for name, value in read(branches / "out").items():
        steps = [state[name].double().numpy() - base[name].double().numpy() for state in states]
        step = sum(share * one for share, one in zip(shares, steps, strict=True))
        if name in grams[0]:
            total = sum(share * gram[name] for share, gram in zip(shares, grams, strict=True))
            level = 0.01 * np.trace(total) / len(total)
            pulled = sum(s * one @ gram[name] for s, one, gram in zip(shares, steps, grams, strict=True)) + level * step
            step = pulled @ np.linalg.inv(total + level * np.eye(len(total)))
        assert np.abs(value.double().numpy() - base[name].double().numpy() - step).max() < 1e-7, name
    assert not (branches / "out" / "curvature").exists()
    assert "random blocks" in verify_models([str(branches / "out")], None).lines[0]


def test_a_device_of_torch_gives_the_same_bits_where_it_is_the_processor(branches):
    folders = [branches / "b0", branches / "b1"]
    for k, folder in enumerate(folders):
        sketch(folder, k)
    calm = {"base": branches / "base", "rule": "regmean"}
    plain = merge_checkpoints(folders, WEIGHTS, {1.0: branches / "plain"}, **calm)
    found = merge_checkpoints(folders, WEIGHTS, {1.0: branches / "out"}, **calm, device="cpu")
    assert plain.checksums == found.checksums


def test_without_sketches_or_with_a_strangers(branches):
    wanted = Merging(branches / "out", rule="regmean", base=str(branches / "base"))
    sketch(branches / "b0", 0)
    with pytest.raises(InputError, match="no sketch of its inputs"):
        merge_models([str(branches / "b0"), str(branches / "b1")], wanted)
    sketch_file(branches / "b1").parent.mkdir()
    shutil.copyfile(sketch_file(branches / "b0"), sketch_file(branches / "b1"))
    with pytest.raises(InputError, match="measured on other weights"):
        merge_models([str(branches / "b0"), str(branches / "b1")], wanted)
    assert not (branches / "out").exists()
