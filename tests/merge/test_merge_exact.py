"""The merge is the float64 average rounded once, whatever the shards, types, order, weights and budget."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_folders import TORCH, bits, exact_mean, read, round_once, write

from merit.merge import plan, stream
from merit.merge.average import merge_checkpoints
from merit.merge.stream import BYTES_AN_ELEMENT
from merit.merge.weights import token_weights, uniform_weights

SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (7,), (5, 3), (2, 3, 4), (65,), (33, 17)]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shapes=SHAPES,
    kinds=st.lists(st.sampled_from(list(TORCH)), min_size=1, max_size=3),
    k=st.integers(1, 5),
    shards=st.integers(1, 3),
    wanted=st.sampled_from(["input", "float32", "bfloat16", "float16"]),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
    shard_bytes=st.sampled_from([64, 1000, 10**9]),
)
def test_any_merge_is_the_reference_rounded_once(shapes, kinds, k, shards, wanted, seed, whole, shard_bytes):
    random = torch.Generator().manual_seed(seed)
    weights = [float(torch.randint(0, 9, (), generator=random)) for _ in range(k)]
    if not whole:
        weights = [weight * 0.1 for weight in weights]
    weights[seed % k] += 1
    # Multiples of 1/256: means of few of them often lie half-way between two bfloat16 values.
    branches = [
        {
            f"t{n}": (torch.randn(shape, generator=random, dtype=torch.float64) * 256).round().div(256)
            .to(TORCH[kinds[n % len(kinds)]])
            for n, shape in enumerate(shapes)
        }
        for _ in range(k)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BLOCK_ELEMENTS", 40)
        patch.setattr(stream, "CHUNK", 16)
        root = Path(temporary)
        inputs = [write(root / str(n), tensors, shards=shards) for n, tensors in enumerate(branches)]
        merge_checkpoints(inputs, weights, {1.0: root / "out"}, dtype=wanted, shard_bytes=shard_bytes)
        merged = read(root / "out")
    assert list(merged.keys() ^ branches[0].keys()) == []
    for name, tensor in merged.items():
        expected = exact_mean([branch[name] for branch in branches], weights)
        dtype = branches[0][name].dtype if wanted == "input" else getattr(torch, wanted)
        assert tensor.dtype == dtype
        assert bits(tensor) == bits(round_once(expected, dtype)), name


def test_mixed_types_are_widened(tmp_path):
    value = torch.randn(50)
    inputs = [write(tmp_path / str(n), {"w": value.to(kind)}) for n, kind in enumerate([torch.bfloat16, torch.float16])]
    merge_checkpoints(inputs, [1, 1], {1.0: tmp_path / "out"})
    expected = exact_mean([value.bfloat16(), value.half()], [1, 1])
    assert bits(read(tmp_path / "out")["w"]) == bits(expected.float())


def test_memory_and_order_of_shards_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 1000)
    branches = [{f"t{n}": torch.randn(120, 31) for n in range(4)} for _ in range(3)]
    found = set()
    for number, (shards, memory) in enumerate(itertools.product((1, 3), (3_000_000, 512_000_000))):
        inputs = [write(tmp_path / f"{number}-{k}", tensors, shards=shards) for k, tensors in enumerate(branches)]
        out = tmp_path / f"out{number}"
        merge_checkpoints(inputs, [3, 2, 1], {1.0: out}, memory_bytes=memory)
        merged = read(out)
        found.add(b"".join(bits(merged[name]) for name in sorted(merged)))
    assert len(found) == 1


def test_ray_and_displacements(tmp_path):
    base = {"w": torch.randn(40, 9), "b": torch.randn(9)}
    branches = [{name: t + 0.01 * torch.randn_like(t) for name, t in base.items()} for _ in range(2)]
    inputs = [write(tmp_path / str(n), tensors) for n, tensors in enumerate(branches)]
    theta0 = write(tmp_path / "base", base)
    outputs = {0.5: tmp_path / "half", 1.0: tmp_path / "one", 2.0: tmp_path / "two"}
    result = merge_checkpoints(inputs, [1, 3], outputs, base=theta0)
    assert result.weights == [0.25, 0.75]
    for scale, folder in outputs.items():
        merged = read(folder)
        squares = 0.0
        for name, start in base.items():
            mean = exact_mean([branch[name] for branch in branches], [1, 3])
            expected = mean if scale == 1 else start.double() + (mean - start.double()) * scale
            torch.testing.assert_close(merged[name], expected.float(), rtol=1e-6, atol=1e-8)
            squares += float((merged[name].double() - start.double()).square().sum())
        assert result.displacement[f"{scale:g}"] == pytest.approx(math.sqrt(squares))
        assert 0 < result.rounding_error[f"{scale:g}"] < 1e-4
    moved = [sum(float((b[n].double() - base[n].double()).square().sum()) for n in base) for b in branches]
    assert result.branch_displacement == pytest.approx([math.sqrt(value) for value in moved])


def test_one_input_gives_itself_back_and_with_a_base_is_wise_ft(tmp_path):
    trained, start = {"w": torch.randn(30)}, {"w": torch.randn(30)}
    inputs, base = [write(tmp_path / "a", trained)], write(tmp_path / "base", start)
    merge_checkpoints(inputs, [0.3], {1.0: tmp_path / "same", 0.5: tmp_path / "half"}, base=base)
    assert bits(read(tmp_path / "same")["w"]) == bits(trained["w"])
    middle = start["w"].double() + (trained["w"].double() - start["w"].double()) * 0.5
    assert bits(read(tmp_path / "half")["w"]) == bits(middle.float())


def test_rounding_above_five_per_cent_is_told(tmp_path):
    base = torch.randn(4000).bfloat16()
    branches = [{"w": base.float() * (1 + 0.002 * torch.randn(4000))} for _ in range(2)]
    inputs = [write(tmp_path / str(n), tensors) for n, tensors in enumerate(branches)]
    theta0 = write(tmp_path / "base", {"w": base.float()})
    result = merge_checkpoints(inputs, [1, 1], {1.0: tmp_path / "out"}, base=theta0, dtype="bfloat16")
    assert result.rounding_error["1"] > 0.05
    assert "write float32" in result.notes[-1]


def test_stochastic_rounding_is_unbiased_and_does_not_depend_on_the_cut(tmp_path, monkeypatch):
    value = {"w": torch.full((40_000,), 1 + 2**-10)}  # an eighth of the way between two bfloat16 values
    one = write(tmp_path / "a", value)
    merge_checkpoints([one], [1], {1.0: tmp_path / "x"}, dtype="bfloat16", rounding="stochastic", seed=3)
    monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 777)
    monkeypatch.setattr(stream, "CHUNK", 55)
    merge_checkpoints([one], [1], {1.0: tmp_path / "y"}, dtype="bfloat16", rounding="stochastic", seed=3)
    found = read(tmp_path / "x")["w"]
    assert bits(found) == bits(read(tmp_path / "y")["w"])
    assert set(found.float().unique().tolist()) == {1.0, 1 + 2**-7}
    assert float(found.float().mean() - 1) == pytest.approx(2**-10, rel=0.05)


@pytest.mark.parametrize("budget", [2_200_000, 4_000_000, 10_000_000, 512_000_000])
def test_buffers_fit_the_budget(budget):
    threads, elements = stream.split_memory(budget)
    assert threads * elements * BYTES_AN_ELEMENT <= budget


def test_weights():
    assert token_weights([3, 1]) == [3.0, 1.0]
    assert uniform_weights(3) == [1.0, 1.0, 1.0]
