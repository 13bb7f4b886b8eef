"""The file of a branch's input sketch: what it keeps of a Gram matrix, its size, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from merit.base.errors import InputError
from merit.models.input_sketch import InputSketch, LowRank, SketchFacts, rank_for, sketch_file, write_sketch
from merit.models.source import weights_fingerprint

LAYERS = {
    "model.layers.0.self_attn.q_proj.weight": "0",
    "model.layers.0.self_attn.k_proj.weight": "0",
    "model.layers.0.mlp.down_proj.weight": "1",
}
WIDTHS = {"0": 32, "1": 64}  # of the tiny model


def gram(width: int, seed: int, tokens: int = 200) -> Tensor:
    """Of inputs whose directions are unlike, as in a network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, dtype=torch.float64, generator=generator)
    x = (x * torch.logspace(1, -2, width, dtype=torch.float64)) @ torch.linalg.qr(
        torch.randn(width, width, dtype=torch.float64, generator=generator)
    )[0]
    return x.T @ x / tokens


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def written(checkpoint: Path, rank: int = 8) -> Path:
    facts = SketchFacts(
        branch="b", weights=weights_fingerprint(checkpoint), wanted=64, examples=66, tokens=1234, layers=LAYERS
    )
    inputs = {name: LowRank.of(gram(width, int(name)), rank) for name, width in WIDTHS.items()}
    return write_sketch(checkpoint, facts, inputs)


@given(width=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_diagonal_and_trace_are_kept_and_directions_are_the_largest(width: int, share: float, seed: int) -> None:
    exact, rank = gram(width, seed), round(share * width)
    rows, rest = LowRank.of(exact, rank).rows_and_rest()
    assert rows.shape == (rank, width)
    assert bool((rest >= 0).all())
    found = (rows.T @ rows).diagonal() + rest
    torch.testing.assert_close(found, exact.diagonal(), rtol=0.03, atol=0)  # where the rows alone are too large
    assert float((found.sum() / exact.trace() - 1).abs()) < 0.01
    # The best approximation of this rank leaves the smaller eigenvalues; eight bits add a little.
    left = torch.linalg.eigvalsh(exact).flip(0)[rank:].norm()
    assert float((exact - rows.T @ rows).norm()) <= float(left) + 0.03 * float(exact.norm())


def test_what_is_written_is_read(checkpoint: Path) -> None:
    file = written(checkpoint)
    assert file == sketch_file(checkpoint) == checkpoint / "curvature" / "inputs.safetensors"
    sketch = InputSketch.open(checkpoint, branch="b")
    assert sketch is not None
    assert (sketch.facts.examples, sketch.facts.tokens) == (66, 1234)
    q, k = (sketch.of(f"model.layers.0.self_attn.{name}_proj.weight") for name in "qk")
    assert q is not None
    assert k is not None
    torch.testing.assert_close(q[0], k[0])
    stored = load_file(file)  # by another reader
    assert len(stored) == 6  # two inputs of three parts: layers that share theirs have one
    sizes = stored["0.diagonal"].double().sqrt()
    torch.testing.assert_close(q[0], stored["0.rows"].double() * stored["0.scale"].double()[:, None] * sizes)
    torch.testing.assert_close(q[0].square().sum(0) + q[1], sizes.square(), rtol=0.03, atol=0)
    assert sketch.of("model.norm.weight") is None
    assert sketch.width("model.norm.weight") is None
    assert sketch.width("model.layers.0.mlp.down_proj.weight") == 64


def test_a_checkpoint_without_one(checkpoint: Path) -> None:
    assert InputSketch.open(checkpoint) is None


@given(
    widths=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    share=st.integers(1, 7),
    budget=st.integers(10_000, 60_000_000),
)
@settings(max_examples=60, deadline=None)
def test_the_rank_fills_the_budget(widths: list[int], share: int, budget: int) -> None:
    named = {str(number): width for number, width in enumerate(widths)}
    rank = rank_for(named, share * len(widths), budget)
    size = sum(min(rank, d) * d + 4 * min(rank, d) + 4 * d for d in widths)
    assert rank == 0 or size <= budget
    if 0 < rank < max(widths):
        room = 96 * (3 + share) * len(widths) + 1024 + sum(d + 4 for d in widths)
        assert size + room > budget, "a higher rank would have fitted"


def test_the_file_is_not_larger_than_it_was_allowed(checkpoint: Path) -> None:
    budget = 4500
    rank = rank_for(WIDTHS, len(LAYERS), budget)
    assert rank >= 8
    assert written(checkpoint, rank).stat().st_size <= budget


def change(file: Path, alter: Callable[[dict[str, Tensor]], None], note: Callable[[str], str] = str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        notes = {key: note(value) for key, value in opened.metadata().items()}
    alter(tensors)
    save_file(tensors, file, notes)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda file: change(file, lambda t: t.pop("1.diagonal")), "`1`: damaged: a part of these inputs is missing"),
        (lambda file: change(file, lambda t: t.update({"1.diagonal": torch.zeros(3)})), "do not fit together"),
        (lambda file: change(file, lambda t: t.update({"1.rows": t["1.rows"].float()})), "do not fit together"),
        (
            lambda file: change(file, lambda t: None, lambda text: text.replace("down_proj", "up_proj")),
            "no linear layer with such inputs",
        ),
        (lambda file: change(file, lambda t: None, lambda _: "[]"), "not a sketch of a branch's inputs"),
        (
            lambda file: change(file, lambda t: None, lambda text: text.replace("inputs.1", "inputs.9")),
            "has the format",
        ),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "the header describes"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"I8"', b'"U8"')), "damaged header"),
        (lambda file: file.write_bytes(b"no"), "not a whole safetensors file"),
    ],
)
def test_damage_is_one_line(checkpoint: Path, alter: Callable[[Path], None], message: str) -> None:
    file = written(checkpoint)
    alter(file)
    with pytest.raises(InputError, match=rf"inputs\.safetensors.*{message}") as caught:
        InputSketch.open(checkpoint)
    assert "\n" not in str(caught.value)


def test_numbers_that_no_gram_has(checkpoint: Path) -> None:
    file = written(checkpoint)
    change(file, lambda t: t["1.diagonal"].neg_())
    sketch = InputSketch.open(checkpoint)
    assert sketch is not None
    with pytest.raises(InputError, match="not the numbers of a Gram matrix"):
        sketch.of("model.layers.0.mlp.down_proj.weight")


def test_another_branchs_and_other_weights_are_refused(checkpoint: Path) -> None:
    written(checkpoint)
    with pytest.raises(InputError, match="is the sketch of another branch"):
        InputSketch.open(checkpoint, branch="c")
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="was measured on other weights"):
        InputSketch.open(checkpoint)
