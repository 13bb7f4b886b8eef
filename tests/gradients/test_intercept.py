"""Folding inside the layers: what is recognised, what is left to the hooks, and the head's tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_gradient_engine import close, expected
from tiny_models import CONFIGS, examples, tiny

from merit.base.errors import InputError
from merit.compute.head import find_tail
from merit.gradients.engine import GradientEngine, Shortcuts
from merit.gradients.sketch import SketchSpec

FOLD = SketchSpec(kind="fold", fold=7, least=1)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_no_weight_gradient_is_formed(architecture):
    model = tiny(architecture)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    engine.measure("a", examples(6))
    assert all(name.endswith("_bias") for name in engine.in_full)  # biases of experts are two-dimensional
    assert bool(engine.in_full) == (architecture == "GptOss")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_same_as_the_hook_path(architecture):
    model, data = tiny(architecture), examples(8)
    slow = GradientEngine(model, FOLD, batch_tokens=64, shortcuts=Shortcuts(intercept=False)).measure("a", data)
    fast = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data)
    assert close(fast.sums, slow.sums)


def test_an_unknown_use_of_a_weight_falls_back_and_adds_up():
    model, data = tiny("Llama"), examples(6)
    layer = model.model.layers[0].mlp

    def odd(x):
        return layer.down_proj(layer.act_fn(layer.gate_proj(x)) * torch.einsum("bni,oi->bno", x, layer.up_proj.weight))

    layer.forward = odd
    want, _ = expected(model, FOLD, data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    assert close(engine.measure("a", data).sums.sum(0), want)
    assert engine.in_full == {"model.layers.0.mlp.up_proj.weight"}


def test_a_weight_used_both_ways_adds_up():
    model, data = tiny("Llama"), examples(6)
    layer = model.model.layers[0].mlp

    def odd(x):
        up = 0.5 * layer.up_proj(x) + 0.5 * torch.einsum("bni,oi->bno", x, layer.up_proj.weight)
        return layer.down_proj(layer.act_fn(layer.gate_proj(x)) * up)

    layer.forward = odd
    want, _ = expected(model, FOLD, data)
    assert close(GradientEngine(model, FOLD, batch_tokens=64).measure("a", data).sums.sum(0), want)


def test_frozen_layers_below_cost_nothing():
    model, data = tiny("Llama"), examples(6)
    model.requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_(True)
    want, _ = expected(model, FOLD, data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    reached = []
    model.model.layers[0].register_full_backward_hook(lambda *_: reached.append(0))
    assert close(engine.measure("a", data).sums.sum(0), want)
    assert not reached


def test_only_the_head_is_trainable():
    model, data = tiny("Llama"), examples(6)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    want, _ = expected(model, FOLD, data)
    assert close(GradientEngine(model, FOLD, batch_tokens=64).measure("a", data).sums.sum(0), want)


def test_adapters_are_recognised():
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, data = peft.get_peft_model(tiny("Llama"), config), examples(6)
    want, _ = expected(model, FOLD, data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    assert all("lora_" in tensor.name for tensor in engine.layout.tensors)
    assert close(engine.measure("a", data).sums.sum(0), want)
    assert not engine.in_full


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("Gemma2", {"final_logit_softcapping": 0.7}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Granite", {"logits_scaling": 3.0}),
    ],
)
def test_tails_of_the_head(architecture, options):
    model, data = tiny(architecture, **options), examples(6)
    assert find_tail(model.eval(), {"input_ids": torch.tensor([[1, 2, 3]])}) is not None
    want, loss = expected(model, FOLD, data)
    got = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data)
    assert close(got.sums.sum(0), want)
    assert sum(got.losses) == pytest.approx(loss, rel=1e-5)


def test_an_unknown_tail_makes_all_logits_at_once():
    model, data = tiny("Llama"), examples(6)
    inner = model.forward

    def odd(*args, **kwargs):
        out = inner(*args, **kwargs)
        out.logits = out.logits + 0.1 * out.logits**2
        return out

    model.forward = odd
    assert find_tail(model.eval(), {"input_ids": torch.tensor([[1, 2, 3]])}) is None
    want, _ = expected(model, FOLD, data)
    assert close(GradientEngine(model, FOLD, batch_tokens=64).measure("a", data).sums.sum(0), want)


def test_chunks_of_the_head_do_not_matter(monkeypatch):
    model, data = tiny("Qwen2"), examples(8)
    want = GradientEngine(model, FOLD, batch_tokens=200).measure("a", data)
    monkeypatch.setattr("merit.compute.head.LOGIT_BYTES", 1)
    monkeypatch.setattr("merit.compute.head.MIN_ROWS", 3)
    got = GradientEngine(model, FOLD, batch_tokens=200).measure("a", data)
    assert close(got.sums, want.sums)


def test_the_padding_token_of_an_embedding_has_no_gradient():
    model = tiny("Llama")
    assert model.model.embed_tokens.padding_idx == 0
    data = examples(4)
    data = [type(e)([0, *e.input_ids], [-100, *e.labels]) for e in data]
    want, _ = expected(model, FOLD, data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    got = engine.measure("a", data).sums.sum(0)
    assert close(got, want)
    embedding = engine.layout.tensors[0]
    assert not got[embedding.start : embedding.stop].reshape(61, -1)[0].any()
    assert np.abs(got[embedding.start : embedding.stop].reshape(61, -1)[1:]).sum() > 0


@pytest.mark.parametrize("architecture", ["Llama", "Mixtral", "GPT2", "Gemma2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_changes_nothing(architecture, precision):
    model, data = tiny(architecture), examples(8)
    want = GradientEngine(model, FOLD, batch_tokens=64, precision=precision).measure("a", data)
    engine = GradientEngine(model, FOLD, batch_tokens=64, precision=precision, recompute=True)
    runs = []
    handle = model.base_model.get_submodule("h.0.mlp" if architecture == "GPT2" else "layers.0.mlp")
    handle = getattr(handle, "gate", getattr(handle, "act", getattr(handle, "act_fn", handle)))
    handle = handle.register_forward_hook(lambda *_: runs.append(0))
    got = engine.measure("a", data)
    handle.remove()
    assert close(got.sums, want.sums, 1e-5 if precision == "fp32" else 1e-2)
    assert not engine.in_full
    once = []
    handle = model.base_model.register_forward_hook(lambda *_: once.append(0))
    engine.measure("a", data)
    handle.remove()
    assert len(runs) == 2 * len(once)
    assert "forward" not in model.base_model.get_submodule("h" if architecture == "GPT2" else "layers")[0].__dict__


def test_a_scope_covers_what_it_matches_and_costs_no_more():
    model, data = tiny("Llama"), examples(6)
    spec = FOLD.model_copy(update={"scope": r"layers\.1\.(mlp|self_attn)"})
    want, _ = expected(model, spec, data)
    engine = GradientEngine(model, spec, batch_tokens=64)
    assert {t.name.split(".")[2] for t in engine.layout.tensors} == {"1"}
    reached = []
    model.model.layers[0].register_full_backward_hook(lambda *_: reached.append(0))
    assert close(engine.measure("a", data).sums.sum(0), want)
    assert not reached
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="no trainable parameter's name matches 'lora_'"):
        GradientEngine(model, FOLD.model_copy(update={"scope": "lora_"}), batch_tokens=64)
