"""The checks on a finished tiny run, against direct computation."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import finished  # noqa: F401 — a fixture
from safetensors.torch import load_file, save_file

from merit.base import extensions
from merit.base.errors import InputError, StageError
from merit.compute.losses import supervised_nll
from merit.context import RunContext
from merit.data.store import EncodedDataset
from merit.diagnose.bench import Bench
from merit.diagnose.check import find_check
from merit.diagnose.checks.displacement import displacement
from merit.diagnose.checks.lmc import connectivity, segment_pairs
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.plane import Plane
from merit.diagnose.step import make_bench
from merit.models.loading import load_model
from merit.run.layout import RunDir


@pytest.fixture(scope="module")
def bench(finished: RunDir) -> Bench:  # noqa: F811
    return make_bench(RunContext.open(finished.root))


def measure(bench: Bench, name: str, **settings: Any) -> Any:
    """A check's result, with other settings of the section `diagnose`, and not stored."""
    other = copy.copy(bench)
    other.config = bench.config.model_copy(update=settings)
    return find_check(name).run(other)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def state(live: LiveModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in live.parameters.items()}


def test_live_weights_are_those_of_the_checkpoint_bit_by_bit(bench: Bench) -> None:
    for label, folder in bench.models.folders.items():
        bench.live.set({label: 1.0})
        stored = weights(folder)
        for name, parameter in bench.live.parameters.items():
            assert torch.equal(parameter, stored[name]), (label, name)


def test_points_on_a_segment_are_interpolated(bench: Bench) -> None:
    bench.live.set({"branch 0": 0.25, "branch 1": 0.75})
    a, b = (weights(bench.models.folders[f"branch {k}"]) for k in range(2))
    for name, parameter in bench.live.parameters.items():
        torch.testing.assert_close(parameter.detach(), torch.lerp(a[name], b[name], 0.75))


def test_blocks_do_not_matter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.live.set({"merge": 0.5, "base": 0.5})
    whole = state(bench.live)
    monkeypatch.setattr("merit.diagnose.live.BLOCK", 1000)
    bench.live.set({"merge": 0.5, "base": 0.5})
    for name, parameter in bench.live.parameters.items():
        assert torch.equal(parameter, whole[name])


def test_connectivity_repeats_itself_and_agrees_with_plain_losses(bench: Bench) -> None:
    pairs = segment_pairs(bench.models)
    found = connectivity(bench.live, pairs, bench.sets, points=5)
    assert [(item.a, item.b) for item in found.held_out] == pairs
    assert len(found.train) == len(pairs) == 1 + 2 + 2 + 1
    again = connectivity(bench.live, pairs[:1], bench.sets, points=5)
    assert again.held_out[0] == found.held_out[0]
    middle = load_model(bench.models.base)
    a, b = (weights(bench.models.folders[f"branch {k}"]) for k in range(2))
    middle.load_state_dict({name: (a[name] + b[name]) / 2 for name in a}, strict=False)
    middle.tie_weights()
    losses = bench.held_out.measure(middle.eval(), "middle")
    assert found.held_out[0].loss[2] == pytest.approx(bench.held_out.resampler.mean(losses[None])[0], rel=1e-4)
    assert found.held_out[0].chord[0] == found.held_out[0].loss[0]


def test_displacement_against_whole_tensors(bench: Bench) -> None:
    found = displacement(bench.moves)
    base = weights(bench.models.base)
    flat = {}
    for label in bench.moves.labels:
        own = weights(bench.models.folders[label])
        flat[label] = torch.cat([(own[name].double() - base[name].double()).flatten() for name in base]).numpy()
    for i, item in enumerate(found.models):
        assert item.total == pytest.approx(np.linalg.norm(flat[item.model]), rel=1e-9)
        assert sum(part**2 for part in item.layers.values()) == pytest.approx(item.total**2, rel=1e-9)
        for j, other in enumerate(found.models):
            a, b = flat[item.model], flat[other.model]
            assert found.cosines[i][j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
    by_model = {item.model: item.total for item in found.models}
    assert found.ratio == pytest.approx(by_model["joint"] / by_model["merge"])
    assert list(found.models[0].layers) == ["embeddings", "layer 0", "layer 1", "norm"]


def test_gain_is_the_difference_of_the_losses(bench: Bench) -> None:
    found = measure(bench, "gain")
    face = found.held_out
    parts = sum(w * face.losses[f"branch {k}"].value for k, w in enumerate(bench.models.weights))
    assert face.gain.value == pytest.approx(parts - face.losses["merge"].value)
    assert face.gain.low <= face.gain.value <= face.gain.high
    assert face.merge_minus_joint is not None
    assert face.merge_minus_joint.value == pytest.approx(face.losses["merge"].value - face.losses["joint"].value)
    assert found.gap_joint is not None
    assert found.gap_joint.value == pytest.approx(face.losses["joint"].value - found.train.losses["joint"].value)


def test_noise_has_the_norm_of_its_row(bench: Bench) -> None:
    bench.live.set({"merge": 1.0})
    before = state(bench.live)
    bench.live.add_noise(0.1, seed=1)
    for name, parameter in bench.live.parameters.items():
        change = parameter.detach() - before[name]
        if parameter.ndim < 2:
            assert not change.any()
        else:
            torch.testing.assert_close(change.norm(dim=1), 0.1 * before[name].norm(dim=1), rtol=1e-4, atol=1e-6)
    first = state(bench.live)
    bench.live.set({"merge": 1.0})
    bench.live.add_noise(0.1, seed=1)
    assert all(torch.equal(parameter, first[name]) for name, parameter in bench.live.parameters.items())
    bench.live.set({"merge": 1.0})
    bench.live.add_noise(0.1, seed=2)
    assert not torch.equal(bench.live.parameters["model.embed_tokens.weight"], first["model.embed_tokens.weight"])


def test_perturbation_starts_at_zero(bench: Bench) -> None:
    found = measure(bench, "perturbation", noise=[0.5, 0.1], noise_seeds=2)
    assert list(found.levels) == ["merge", "joint"]
    for levels in found.levels.values():
        assert [level.sigma for level in levels] == [0.0, 0.1, 0.5]
        assert (levels[0].rise.value, levels[0].rise.low, levels[0].rise.high) == (0, 0, 0)
        assert levels[0].seed_spread is None
        assert levels[2].seed_spread is not None
    assert found.merge_minus_joint is not None
    last = found.merge_minus_joint[2].value
    assert last == pytest.approx(found.levels["merge"][2].rise.value - found.levels["joint"][2].rise.value)


def test_landscape_holds_all_models(bench: Bench) -> None:
    found = measure(bench, "landscape", grid=3)
    assert np.array(found.loss).shape == (3, 3)
    for x, y in found.models.values():
        assert found.x[0] < x < found.x[-1]
        assert found.y[0] < y < found.y[-1]


def test_plane_coefficients_put_a_model_where_it_is(bench: Bench) -> None:
    moves = bench.moves
    keep = [i for i, label in enumerate(moves.labels) if label.startswith("branch")]
    labels = [moves.labels[i] for i in keep]
    plane = Plane.of(labels, moves.gram[np.ix_(keep, keep)])
    bench.live.set(plane.coefficients(*plane.positions["branch 1"]))
    stored = weights(bench.models.folders["branch 1"])
    for name, parameter in bench.live.parameters.items():
        torch.testing.assert_close(parameter.detach(), stored[name], rtol=1e-4, atol=1e-6)


def test_losses_are_the_engine_s_own(bench: Bench) -> None:
    bench.live.set({"base": 1.0})
    losses = bench.held_out.measure(bench.live.model, "base")
    with torch.no_grad():
        alone = float(supervised_nll(bench.live.model, [bench.held_out.rows[3]]).nll.mean())
    assert losses[3] == pytest.approx(alone, rel=1e-5)
    assert len(set(bench.held_out.owner)) == 4
    assert len(bench.train.rows) == 16


def test_a_dataset_without_rows_is_named(bench: Bench) -> None:
    data = EncodedDataset.open(bench.run.data("copy"))
    data.__dict__["held_out"] = np.zeros(0, np.int64)
    with pytest.raises(InputError, match="no held-out example"):
        LossSet.of([data], 4, held_out=True, batch_tokens=4096, precision="fp32", seed=0)


def test_different_layouts_are_refused(bench: Bench, tmp_path: Path) -> None:
    folder = shutil.copytree(bench.models.merge, tmp_path / "other")
    tensors = weights(folder)
    wide = {name: value.repeat(2) if name == "model.norm.weight" else value for name, value in tensors.items()}
    save_file(wide, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"`model.norm.weight`: shape \[64\], but \[32\]"):
        LiveModel(bench.live.model, {"base": bench.models.base, "merge": folder})
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="`base` has this tensor, but `merge` does not"):
        LiveModel(bench.live.model, {"base": bench.models.base, "merge": folder})


def test_a_branch_that_has_not_moved_is_named(bench: Bench) -> None:
    from merit.diagnose.checks.displacement import measure_moves
    from merit.diagnose.live import Aligned

    aligned = Aligned({"base": bench.models.base, "branch 0": bench.models.base})
    with pytest.raises(InputError, match="`branch 0` has not moved from θ0"):
        measure_moves(aligned)


def test_losses_that_are_not_finite_are_one_line(bench: Bench) -> None:
    bench.live.set({"base": float("nan")})
    with pytest.raises(StageError, match="loss of here is not finite"):
        bench.held_out.measure(bench.live.model, "here")


def test_the_report_reads_the_checks_without_torch() -> None:
    program = "import sys; from merit.diagnose.check import all_checks; all_checks(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets", "sklearn", "scipy"}.isdisjoint(done.stdout.split())


def test_the_page_has_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    assert all(f"| `{check}` |" in page for check in extensions.names("checks"))
