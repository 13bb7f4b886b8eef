"""The engine against plain autograd, for every kind of parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, examples, plain_gradients, tiny

from merit.base.errors import InputError
from merit.data.example import IGNORED, Encoded
from merit.gradients.engine import GradientEngine
from merit.gradients.fold import Sketcher
from merit.gradients.sketch import SketchSpec

FULL = SketchSpec(kind="full")
FOLD = SketchSpec(kind="fold", fold=7, least=1, seed=3)
FLAT = SketchSpec(kind="flat", stride=3, offset=4)


def expected(model, spec, data):
    """The sketch applied to the gradient that autograd forms in full."""
    grads, loss = plain_gradients(model, data)
    engine = GradientEngine(model, spec, batch_tokens=64)
    sketcher = Sketcher(engine.layout)
    parts = [
        sketcher.apply(t.name, grads[t.name]) if t.name in grads else torch.zeros(t.size) for t in engine.layout.tensors
    ]
    return torch.cat(parts).numpy(), loss


def close(a, b, tolerance=1e-5):
    return np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("spec", [FULL, FOLD, FLAT], ids=lambda spec: spec.kind)
def test_equals_autograd(architecture, spec):
    model, data = tiny(architecture), examples(7)
    want, loss = expected(model, spec, data)
    got = GradientEngine(model.train(), spec, batch_tokens=64).measure("a", data)
    assert close(got.sums.sum(0), want)
    assert sum(got.losses) == pytest.approx(loss, rel=1e-5)
    assert got.tokens == (sum(e.supervised for e in data[::2]), sum(e.supervised for e in data[1::2]))
    assert got.examples == (4, 3)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_parameter_alone(architecture):
    # A large matrix must not hide a wrong small one.
    model, data = tiny(architecture), examples(4)
    want, _ = expected(model, FOLD, data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    got = engine.measure("a", data).sums.sum(0)
    for t in engine.layout.tensors:
        scale = max(np.linalg.norm(want[t.start : t.stop]), 1e-4 * np.linalg.norm(want))
        assert np.linalg.norm(got[t.start : t.stop] - want[t.start : t.stop]) <= 1e-4 * scale, t.name


def test_half_sums_are_those_of_every_second_example():
    model, data = tiny("Llama"), examples(6)
    got = GradientEngine(model, FULL, batch_tokens=50).measure("a", data)
    for half in range(2):
        want, loss = expected(model, FULL, data[half::2])
        assert close(got.sums[half], want)
        assert got.losses[half] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 37, 10_000])
def test_batch_size_and_order_do_not_matter(batch_tokens):
    model, data = tiny("Qwen2"), examples(8)
    want = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data)
    shuffled = [data[i] for i in (4, 1, 0, 7, 2, 5, 6, 3)]  # every example stays in its half
    got = GradientEngine(model, FOLD, batch_tokens=batch_tokens).measure("a", shuffled)
    assert close(got.sums, want.sums)
    assert got.tokens == want.tokens


def test_every_token_weighs_the_same():
    # One long and one short example: the mean over tokens, not the mean of means.
    model = tiny("Llama")
    long = Encoded(list(range(1, 31)), list(range(1, 31)))
    short = Encoded([5, 6, 7], [IGNORED, IGNORED, 7])
    got = GradientEngine(model, FULL, batch_tokens=64).measure("a", [long, short])
    assert got.tokens == (29, 1)
    mean = got.sums.sum(0) / 30
    ids = torch.tensor([long.input_ids])
    model.eval()
    loss = model(input_ids=ids, labels=ids).loss * 29 / 30  # transformers' own token mean
    labels = torch.tensor([short.labels])
    loss = loss + model(input_ids=torch.tensor([short.input_ids]), labels=labels).loss / 30
    loss.backward()
    want = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()
    assert close(mean, want)


def test_frozen_parameters_are_not_covered_and_unused_ones_are_zero():
    model, data = tiny("Llama"), examples(4)
    model.model.layers[0].requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(5)))
    engine = GradientEngine(model, FULL, batch_tokens=64)
    assert not any("layers.0" in t.name for t in engine.layout.tensors)
    unused = engine.layout.by_name["unused"]
    got = engine.measure("a", data).sums.sum(0)
    assert not got[unused.start : unused.stop].any()
    want, _ = expected(model, FULL, data)
    assert close(got, want)


def test_bf16_stays_near_fp32_and_accumulates_in_fp32():
    model, data = tiny("Llama"), examples(16)
    want = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data).sums.sum(0)
    got = GradientEngine(model, FOLD, batch_tokens=64, precision="bf16").measure("a", data).sums.sum(0)
    assert got.dtype == np.float32
    assert not close(got, want, 1e-6)
    assert got @ want / np.linalg.norm(got) / np.linalg.norm(want) > 0.999


def test_not_finite_names_dataset_batch_and_parameter():
    model, data = tiny("Llama"), examples(4)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        InputError, match=r"`mixture.flan`: calibration batch 0 .* gradient is that of model\."
    ) as error:
        GradientEngine(model, FOLD, batch_tokens=64).measure("flan", data)
    assert error.value.field == "mixture.flan"


def test_zero_gradient_and_no_supervised_token_are_refused():
    model, data = tiny("Llama"), examples(2)
    silent = [Encoded(e.input_ids, [IGNORED] * len(e.labels)) for e in data]
    with pytest.raises(InputError, match="no supervised token"):
        GradientEngine(model, FOLD, batch_tokens=64).measure("a", silent)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    with pytest.raises(InputError, match="zero everywhere"):
        GradientEngine(model, FOLD, batch_tokens=64).measure("a", data)


def test_one_example_fills_one_half():
    got = GradientEngine(tiny("Llama"), FOLD, batch_tokens=64).measure("a", examples(1))
    assert got.examples == (1, 0)
    assert got.tokens[1] == 0
    assert not got.sums[1].any()


def test_nothing_trainable():
    model = tiny("Llama")
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        GradientEngine(model, FOLD, batch_tokens=64)


def test_offloaded_parameters_are_refused():
    model = tiny("Llama")
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(InputError, match=r"`model.layers.1.mlp.gate_proj.weight` is offloaded"):
        GradientEngine(model, FOLD, batch_tokens=64)
