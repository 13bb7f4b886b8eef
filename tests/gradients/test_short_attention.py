"""The hand-written backward pass of short attention against autograd's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_packing import FOLD, prompted
from tiny_models import examples, tiny
from torch.nn import functional

from merit.compute import attention
from merit.compute.attention import ShortAttention, suits
from merit.gradients.engine import GradientEngine


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("prefix", [0, 5])
def test_equals_autograd(key_heads, prefix):
    torch.manual_seed(0)
    q = torch.randn(3, 6, 7, 8, requires_grad=True)
    k, v = (torch.randn(3, key_heads, 7 + prefix, 8, requires_grad=True) for _ in range(2))
    mask = None if prefix == 0 else torch.ones(7, 12, dtype=torch.bool).tril(prefix)[None, None]
    slope = torch.randn(3, 6, 7, 8)
    wide = [x.repeat_interleave(6 // key_heads, dim=1) for x in (k, v)]
    want = functional.scaled_dot_product_attention(q, *wide, attn_mask=mask, is_causal=mask is None, scale=0.3)
    wanted = torch.autograd.grad(want, (q, k, v), slope)
    got = ShortAttention.apply(q, k, v, mask, 0.3)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), slope), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_only_short_bf16_sequences_on_a_cpu():
    short, long = (torch.zeros(1, 1, n, 8, dtype=torch.bfloat16) for n in (256, 257))
    assert suits(short, short)
    assert not suits(long, long)
    assert not suits(short.float(), short.float())
    with torch.no_grad():
        assert not suits(short, short)


@pytest.mark.parametrize("architecture", ["Llama", "Mixtral", "GPT2", "Mistral"])
def test_used_under_autocast_and_as_good(architecture, monkeypatch):
    model = tiny(architecture)
    data = prompted([3] * 9, [[1, 2, 3], list(range(20, 33)), [2, 2, 2, 2]]) + examples(9)
    exact = GradientEngine(model, FOLD, batch_tokens=64).measure("a", data).sums
    calls = []
    real = ShortAttention.apply
    monkeypatch.setattr(attention.ShortAttention, "apply", lambda *args: calls.append(0) or real(*args))
    ours = GradientEngine(model, FOLD, batch_tokens=64, precision="bf16").measure("a", data).sums
    assert calls
    monkeypatch.setattr(attention, "suits", lambda *_: False)
    torchs = GradientEngine(model, FOLD, batch_tokens=64, precision="bf16").measure("a", data).sums
    errors = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (ours, torchs)]
    assert errors[0] < 1.2 * errors[1]
