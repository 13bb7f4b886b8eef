"""The RegMean solve from sketches against the dense formula, and the sketches that a merge refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merit.base.errors import InputError, StageError
from merit.base.kept import files_below
from merit.base.progress import SILENT
from merit.merge.curvature import LayerSketches, Sketch, open_sketches, regmean_step
from merit.merge.remote import fetch
from merit.models.input_sketch import LowRank, SketchFacts, sketch_file, write_sketch
from merit.models.source import weights_fingerprint


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(steps: list[Tensor], grams: list[Sketch], shares: list[float], ridge: float) -> Tensor:
    """The formula, with every Gram matrix formed and the system inverted."""
    whole = [rows.T @ rows + torch.diag(rest) for rows, rest in grams]
    total = sum(w * g for w, g in zip(shares, whole, strict=True))
    mean = sum(w * step for w, step in zip(shares, steps, strict=True))
    level = ridge * torch.trace(total) / len(total)
    pulled = sum(w * step @ g for w, step, g in zip(shares, steps, whole, strict=True)) + level * mean
    return pulled @ torch.linalg.inv(total + level * torch.eye(len(total), dtype=torch.float64))


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 24),
    rank=st.integers(0, 24),
    count=st.integers(1, 5),
    ridge=st.sampled_from([0.01, 0.1, 3.0]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=80, deadline=None)
def test_the_step_is_the_dense_formulas(
    height: int, width: int, rank: int, count: int, ridge: float, seed: int
) -> None:
    steps = [random(seed + k, height, width) for k in range(count)]
    grams = [
        (random(seed + 100 + k, min(rank, width), width), random(seed + 200 + k, width).square()) for k in range(count)
    ]
    shares = (torch.arange(1, count + 1) / sum(range(1, count + 1))).tolist()
    found = regmean_step(steps, grams, shares, ridge)
    expected = dense(steps, grams, shares, ridge)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


def test_a_whole_gram_gives_exact_regmean() -> None:
    """At full rank only eight bits are between the sketch and the exact solve."""
    inputs = [random(k, 60, 10) * torch.logspace(0, -1, 10, dtype=torch.float64) for k in range(3)]
    grams = [x.T @ x / len(x) for x in inputs]
    steps, shares = [random(9 + k, 4, 10) for k in range(3)], [0.5, 0.3, 0.2]
    exact = dense(steps, [(torch.linalg.cholesky(g).T, torch.zeros(10)) for g in grams], shares, 0.01)
    found = regmean_step(steps, [LowRank.of(g, 10).rows_and_rest() for g in grams], shares, 0.01)
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_no_data_and_equal_branches_give_the_average() -> None:
    step = random(1, 3, 5)
    nothing = (torch.zeros(0, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(regmean_step([step, 3 * step], [nothing] * 2, [0.5, 0.5], 0.1), 2 * step)
    some = (random(2, 2, 5), random(3, 5).square())
    torch.testing.assert_close(regmean_step([step, step], [some, nothing], [0.5, 0.5], 0.1), step)


def test_steps_may_be_read_when_they_are_asked() -> None:
    class Lazy(list[Tensor]):
        reads = 0

        def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
            self.reads += 1
            return super().__getitem__(index)

    steps = Lazy([random(k, 3, 5).float() for k in range(3)])
    grams = [(random(5 + k, 2, 5), random(8 + k, 5).square()) for k in range(3)]
    found = regmean_step(steps, grams, [0.2, 0.3, 0.5], 0.1)
    assert steps.reads == 3
    assert found.dtype == torch.float64


def test_sketches_of_one_layer_are_read_from_every_branch(tiny_model: Path, tmp_path: Path) -> None:
    """The second branch's data do not reach the first layer, nor anybody's the second."""
    down, other = (f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1))
    step, folders = random(1, 32, 64), [tmp_path / "a", tmp_path / "b"]
    x = random(4, 100, 64)
    low = LowRank.of(x.T @ x / 100, 20)
    for folder, layers in zip(folders, ({down: "0"}, {}), strict=True):
        shutil.copytree(tiny_model, folder)
        mark = weights_fingerprint(folder)
        facts = SketchFacts(branch=folder.name, weights=mark, wanted=8, examples=8, tokens=100, layers=layers)
        write_sketch(folder, facts, {"0": low})
    sketches = open_sketches(folders, ["a", "b"])
    assert LayerSketches.of(sketches, [other, other]) is None
    grams = LayerSketches.of(sketches, [down, down])
    assert grams is not None
    assert len(grams) == 2
    found = regmean_step([step, -step], grams, [0.5, 0.5], 0.01)
    nothing = (torch.zeros(0, 64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64))
    expected = dense([step, -step], [low.rows_and_rest(), nothing], [0.5, 0.5], 0.01)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(InputError, match="is the sketch of another branch"):
        open_sketches(folders, ["a", "c"])


def test_what_is_not_finite_is_a_diverged_branch() -> None:
    some = (random(2, 2, 5), random(3, 5).square())
    bad = torch.full((3, 5), float("nan"))
    with pytest.raises(StageError, match="diverged"):
        regmean_step([random(1, 3, 5), bad], [some, some], [0.5, 0.5], 0.1)
    with pytest.raises(StageError, match="diverged"):
        regmean_step([random(1, 3, 5)], [(some[0], some[1] * float("nan"))], [1.0], 0.1)


def test_a_sketch_comes_with_a_checkpoint_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there"
    sketch_file(there).parent.mkdir(parents=True)
    for file in (there / "config.json", there / "model.safetensors", there / "inputs.safetensors", sketch_file(there)):
        file.write_text(file.relative_to(there).as_posix())
    here = fetch(f"file://{there}", SILENT)
    assert files_below(here) == [
        here / name
        for name in ("config.json", "curvature/inputs.safetensors", "inputs.safetensors", "model.safetensors")
    ]
    assert sketch_file(here).read_text() == "curvature/inputs.safetensors"
    assert (here / "inputs.safetensors").read_text() == "inputs.safetensors"


def test_a_branch_without_a_sketch_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inputs\.safetensors: this branch has no sketch .*`merit run` measures one"):
        open_sketches([tmp_path])
