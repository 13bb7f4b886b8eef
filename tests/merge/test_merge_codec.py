"""The codec rounds once, for every type, in the awkward places: ties, near ties, subnormals, signed zeros."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from merge_folders import TORCH, bits, round_once

from merit.merge.codec import Scratch, decode, dither, encode, sum_of_squares
from merit.models.checkpoint import ITEM_BYTES


def awkward(dtype):
    random = np.random.default_rng(0)
    smallest = {"BF16": -44, "F16": -9}.get(dtype, -44)
    plain = random.standard_normal(4000) * 10.0 ** random.integers(smallest, 3, 4000)
    dropped = {"BF16": 16, "F16": 13}.get(dtype, 1)
    raw = plain.astype(np.float32).view(np.uint32)
    ties = ((raw >> dropped << dropped) | np.uint32(1 << (dropped - 1))).view(np.float32).astype(np.float64)
    near = [ties * (1 + step) for step in (1e-15, -1e-15, 2.3e-16, 1e-9, -1e-9)]
    return np.concatenate([plain, ties, *near, [0.0, -0.0, 1e-50, -1e-50, 5e-324]])


@pytest.mark.parametrize("dtype", list(TORCH))
def test_encode_rounds_once_and_decode_is_exact(dtype):
    values = awkward(dtype)
    scratch = Scratch.make(values.size)
    raw = np.empty(values.size * ITEM_BYTES[dtype], np.uint8)
    with np.errstate(all="ignore"):
        encode(values, dtype, raw, scratch)
    expected = round_once(torch.from_numpy(values), TORCH[dtype])
    assert raw.tobytes() == bits(expected)
    back = np.empty(values.size)
    decode(raw, dtype, back, scratch)
    assert back.tobytes() == bits(expected.double())


@pytest.mark.parametrize("count", [0, 1, 8191, 8192, 8193, 50_000])
def test_sums_of_squares(count):
    values = np.random.default_rng(count).standard_normal(count) * 1e3
    assert sum_of_squares(values) == pytest.approx(math.fsum(value * value for value in values.tolist()), rel=1e-14)
    if count:
        values[-1] = np.nan
        assert np.isnan(sum_of_squares(values))


def test_torch_rounds_twice():
    """Why the reference is our own: a value just above a bfloat16 tie falls to the even neighbour in torch."""
    value = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert value.bfloat16().item() == 1.0
    assert round_once(value, torch.bfloat16).item() == 1 + 2**-7


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_dither_goes_to_a_neighbour(dtype):
    values = awkward(dtype)
    values = values[np.abs(values) < 60000]
    moved = values.copy()
    dither(moved, dtype, 1, "w", 0)
    stored = torch.from_numpy(moved).to(TORCH[dtype])
    assert torch.equal(stored.double(), torch.from_numpy(moved))  # on the grid of the type already
    step = np.abs(torch.from_numpy(values).to(TORCH[dtype]).double().numpy() - values)
    grid = np.maximum(
        np.abs(values) * 2.0 ** -({"F32": 23, "BF16": 7, "F16": 10}[dtype]), 6e-8 if dtype == "F16" else 0
    )
    assert np.all(np.abs(moved - values) <= np.maximum(grid, 2 * step) + 1e-40)
