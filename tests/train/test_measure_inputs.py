"""Gram matrices of what linear layers are given: against inputs kept example by example, in any number of passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from merit.base.errors import StageError
from merit.data.example import Encoded
from merit.models.linear import linear_layers
from merit.train.curvature import input_grams, shared_inputs

LAYER = "model.layers.0."
SHARED = [
    tuple(f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv"),
    (f"{LAYER}self_attn.o_proj.weight",),
    (f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
    (f"{LAYER}mlp.down_proj.weight",),
    ("lm_head.weight",),
]


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in (5, 9, 9, 12):
        ids = torch.randint(1, 40, (length,), generator=generator).tolist()
        found.append(Encoded(ids, [-100] * 3 + ids[3:]))
    return found


def inputs_of(model: LlamaForCausalLM, name: str, rows: list[Encoded]) -> Tensor:
    """(tokens, width), float64: example by example."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach().double()))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    return torch.cat(seen)


def test_layers_with_one_input_share_it(model: LlamaForCausalLM, rows: list[Encoded]) -> None:
    assert shared_inputs(model, rows) == SHARED


@pytest.mark.parametrize("memory", [1, 8 * 16 * 16 * 2, 10**9])
def test_grams_are_those_of_the_inputs(model: LlamaForCausalLM, rows: list[Encoded], memory: int) -> None:
    grams = list(input_grams(model, rows, SHARED, memory))
    for group, gram in zip(SHARED, grams, strict=True):
        for name in group:
            x = inputs_of(model, name, rows)
            torch.testing.assert_close(gram, x.T @ x / len(x), rtol=1e-5, atol=1e-6)


def test_memory_bounds_what_is_held(
    model: LlamaForCausalLM, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merit.train import curvature

    held: list[list[int]] = []
    plain = curvature._sums

    def watched(model: nn.Module, layers: dict[str, nn.Linear], rows: list[Encoded]) -> object:
        held.append([layer.in_features for layer in layers.values()])
        return plain(model, layers, rows)

    monkeypatch.setattr(curvature, "_sums", watched)
    list(input_grams(model, rows, SHARED, 8 * 2 * 16 * 16))
    assert held == [[16, 16], [16], [24], [16]]


class Twice(nn.Module):
    """A model whose layer `again` runs twice, on two inputs, the first of which it shares with `once`."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.again = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.again(self.once(x) + self.again(x))
        return found


def test_a_layer_that_runs_twice_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from merit.train import curvature

    x = torch.randn(1, 3, 4)
    monkeypatch.setattr(curvature, "supervised_nll", lambda model, rows: model(x))
    row = [Encoded([1, 2, 3], [-100, 2, 3])]
    assert shared_inputs(Twice(), row) == [("once.weight",), ("again.weight",)]


def test_frozen_layers_are_not_measured(model: LlamaForCausalLM, rows: list[Encoded]) -> None:
    linear_layers(model)[SHARED[1][0]].weight.requires_grad_(False)
    assert shared_inputs(model, rows) == [SHARED[0], *SHARED[2:]]


def test_a_diverged_branch(model: LlamaForCausalLM, rows: list[Encoded]) -> None:
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.fill_(float("inf"))
    with pytest.raises(StageError, match=r"q_proj\.weight are not finite: a diverged branch"):
        list(input_grams(model, rows, SHARED, 10**9))
