"""A row in one call of `varlen_attn`: routed right on any machine, and computed right where there is a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from test_packing import FOLD
from tiny_models import examples, tiny
from torch.nn import functional
from torch.nn.attention import varlen

from merit.compute import attention
from merit.gradients.engine import GradientEngine, Shortcuts

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def reference(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What `varlen_attn` documents, one sequence at a time."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert q.shape[1] == k.shape[1] or enable_gqa
    before, after = window_size
    assert after == 0
    bounds = cu_seq_q.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(q) == len(k)
    lengths = np.diff(bounds)
    assert max_q == max_k == lengths.max()
    parts = []
    for start, stop in itertools.pairwise(bounds):
        at = torch.arange(stop - start)
        mask = at[None, :] <= at[:, None]
        if before >= 0:
            mask &= at[None, :] >= at[:, None] - before
        own = [x[start:stop].transpose(0, 1) for x in (q, k, v)]
        out = functional.scaled_dot_product_attention(*own, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("Llama", {}), ("Qwen2", {}), ("Mixtral", {}), ("Mistral", {"sliding_window": 5}), ("GPT2", {})],
)
def test_one_call_a_layer_and_the_same_gradients(architecture, options, monkeypatch):
    model = tiny(architecture, **options)
    data = examples(9)
    want = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data)
    engine = GradientEngine(model, FOLD, batch_tokens=64, shortcuts=Shortcuts(share_prefixes=False))
    calls = []

    def counted(*args, **kwargs):
        calls.append(0)
        return reference(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(attention, "suits_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "_varlen_arguments", lambda: frozenset({"enable_gqa"}))
    monkeypatch.setattr(attention, "_rectangles", None)
    found = engine.measure("a", data)
    assert calls
    assert len(calls) % model.config.num_hidden_layers == 0
    assert np.linalg.norm(found.sums - want.sums) <= 1e-5 * np.linalg.norm(want.sums)


def test_heads_are_repeated_where_torch_cannot_group_them(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", reference)
    row = attention._Row([attention.Segment(0, 3), attention.Segment(3, 8)], torch.device("cpu"))
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 6, 8, 4), torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    found = []
    for names in (frozenset(), frozenset({"enable_gqa"})):
        monkeypatch.setattr(attention, "_varlen_arguments", lambda names=names: names)
        found.append(attention._varlen(row, q, k, v, None, 0.5))
    torch.testing.assert_close(*found)


def test_not_on_a_cpu():
    assert not attention.suits_varlen(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16))


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"sliding_window": 9}])
def test_on_a_gpu_as_good_as_rectangles(options, monkeypatch):
    # Heads of 8 and more, which the kernel needs.
    model = tiny("Mistral", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, **options).cuda()
    data = examples(20)
    exact = GradientEngine(model, FOLD, batch_tokens=200).measure("a", data).sums
    calls = []
    real = attention._varlen
    monkeypatch.setattr(attention, "_varlen", lambda *args: calls.append(0) or real(*args))
    ours = GradientEngine(model, FOLD, batch_tokens=200, precision="bf16").measure("a", data).sums
    assert calls
    monkeypatch.setattr(attention, "suits_varlen", lambda *_: False)
    others = GradientEngine(model, FOLD, batch_tokens=200, precision="bf16").measure("a", data).sums
    errors = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (ours, others)]
    assert errors[0] < 1.5 * errors[1]
