"""Arithmetic of the checks, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merit.base.errors import InputError
from merit.diagnose.check import Journal
from merit.diagnose.checks.displacement import part_of
from merit.diagnose.checks.lmc import describe_segment, segment_pairs
from merit.diagnose.losses import Resampler
from merit.diagnose.models import Models
from merit.diagnose.plane import Plane


def test_mean_is_token_weighted_within_and_unweighted_over_datasets() -> None:
    resampler = Resampler([1, 3, 5], [0, 0, 1])
    assert resampler.mean(np.array([[1.0, 2.0, 4.0]]))[0] == pytest.approx(((1 + 6) / 4 + 4) / 2)


def test_interval_has_the_width_of_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(2.0, 1.0, 400)
    found = Resampler([1] * 400, [0] * 400).estimate(losses)
    assert found.low < found.value < found.high
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(1 / 20, rel=0.15)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for draw in range(200):
        found = Resampler([1] * 60, [0] * 30 + [1] * 30, seed=draw, draws=300).estimate(rng.normal(0, 1, 60))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_shared_noise_cancels_in_paired_differences() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(0, 5, 50)
    found = Resampler([1] * 50, [0] * 50).estimate((a + 0.1) - a)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_barrier_of_a_known_hill() -> None:
    t = np.linspace(0, 1, 11)
    curve = 2 + t + 4 * t * (1 - t)  # chord 2 + t, hill of 1 at ½
    offsets = np.linspace(-0.5, 0.5, 20)
    found = describe_segment("a", "b", curve[:, None] + offsets[None, :], Resampler([1] * 20, [0] * 20))
    assert found.at == 0.5
    assert found.peak.value == pytest.approx(1)
    assert (found.peak.low, found.peak.high) == pytest.approx((1, 1))  # offsets are the same at all t
    assert found.barrier == found.peak.value
    valley = describe_segment("a", "b", -curve[:, None] + offsets[None, :], Resampler([1] * 20, [0] * 20))
    assert valley.peak.value < 0
    assert valley.barrier == 0


def test_noise_is_no_barrier() -> None:
    rng = np.random.default_rng(3)
    losses = 2 + rng.normal(0, 1, (1, 40)) + rng.normal(0, 0.2, (11, 40))
    found = describe_segment("a", "b", losses, Resampler([1] * 40, [0] * 40))
    assert found.peak.value < 0.25  # a maximum over noise


def test_plane_keeps_distances() -> None:
    rng = np.random.default_rng(4)
    deltas = rng.standard_normal((3, 50))
    labels = ["branch 0", "branch 1", "merge"]
    deltas[2] = 0.3 * deltas[0] + 0.7 * deltas[1]
    plane = Plane.of(labels, deltas @ deltas.T)
    place = {label: np.array(position) for label, position in plane.positions.items()}
    # θ0 and two branches span a plane, and the merge lies in it: no distance is lost.
    for label, delta in zip(labels, deltas, strict=True):
        assert np.linalg.norm(place[label] - place["base"]) == pytest.approx(np.linalg.norm(delta))
        assert plane.off_plane[label] == pytest.approx(0, abs=1e-6)
    assert plane.share == pytest.approx(1)
    x, y = plane.positions["branch 1"]
    found = plane.coefficients(x, y)
    assert found["branch 1"] + found["merge"] * 0.7 == pytest.approx(1)
    assert found["base"] == pytest.approx(0, abs=1e-9)


def test_all_segments_of_four_branches() -> None:
    path = Path()
    pairs = segment_pairs(Models(path, [path] * 4, [0.25] * 4, path))
    assert len(pairs) == 6 + 4 + 4 + 1
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.11.mlp.up_proj.weight", "layer 11"),
        ("transformer.h.0.attn.c_attn.weight", "layer 0"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norm"),
        ("model.vision_tower.layers.3.weight", "other"),
    ],
)
def test_parts_of_a_model(name: str, part: str) -> None:
    assert part_of(name) == part


def test_journal_keeps_what_is_done(tmp_path: Path) -> None:
    file = tmp_path / "journal.json"
    assert Journal(file, "a").get("x", lambda: [1.5]) == [1.5]
    assert Journal(file, "a").get("x", lambda: pytest.fail("measured twice")) == [1.5]
    assert Journal(file, "b").get("x", lambda: 2) == 2  # other settings
    file.write_text('{"fingerprint": "b", "do')
    assert Journal(file, "b").get("x", lambda: 3) == 3  # damaged
    file.write_text(file.read_text().replace('"x": 3', '"x": 7'))
    assert Journal(file, "b").get("x", lambda: 4) == 4  # damaged
    Journal(file, "b").close()
    assert not file.exists()


def test_fewer_than_two_branches_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two branches; there is one"):
        Models(tmp_path, [tmp_path], [1.0], tmp_path).check()
    with pytest.raises(InputError, match="no checkpoint of `merge`"):
        Models(tmp_path, [tmp_path] * 2, [0.5, 0.5], tmp_path / "gone").check()
