"""Snapshots are linear sketches; what follows from them agrees with the weights themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from merit.diagnose.checks.displacement import trajectories
from merit.train.callbacks import WIDTH, sketch_weights


def weights(seed: int, scale: float = 1.0) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (300, 700), "b": (700,), "c": (WIDTH * 2 + 17,)}
    return [(name, scale * torch.randn(*shape, generator=generator)) for name, shape in shapes.items()]


def norm(parameters: list[tuple[str, torch.Tensor]]) -> float:
    return float(torch.cat([p.flatten() for _, p in parameters]).double().norm())


def test_a_sketch_is_linear_and_keeps_norms() -> None:
    a, b = weights(0), weights(1)
    both = [(name, x + 2 * y) for (name, x), (_, y) in zip(a, b, strict=True)]
    np.testing.assert_allclose(sketch_weights(both), sketch_weights(a) + 2 * sketch_weights(b), atol=1e-4)
    for parameters in (a, b, both):
        assert np.linalg.norm(sketch_weights(parameters)) == pytest.approx(norm(parameters), rel=0.03)
    inner = float(sum((x * y).double().sum() for (_, x), (_, y) in zip(a, b, strict=True)))
    error = abs(float(sketch_weights(a) @ sketch_weights(b)) - inner)
    assert error < 5 * norm(a) * norm(b) / np.sqrt(WIDTH)


def write(folder: Path, rows: list[list[float]]) -> Path:
    folder.mkdir(parents=True)
    for index, row in enumerate(rows):
        np.save(folder / f"{index:03d}.npy", np.array(row, dtype=np.float64))
    return folder


def test_the_merge_is_the_weighted_mean_at_each_moment(tmp_path: Path) -> None:
    start = [1.0, 1.0, 1.0]
    folders = {
        "branch 0": write(tmp_path / "0", [start, [2.0, 1.0, 1.0], [5.0, 1.0, 1.0]]),
        "branch 1": write(tmp_path / "1", [start, [1.0, 2.0, 1.0], [1.0, 5.0, 1.0]]),
        "joint": write(tmp_path / "j", [start, [2.0, 2.0, 1.0], [5.0, 5.0, 1.0]]),
    }
    found = trajectories(folders, ["branch 0", "branch 1"], [0.25, 0.75])
    assert found is not None
    assert found.moments == [0.5, 1.0]
    assert found.norms["branch 0"] == pytest.approx([1, 4])
    assert found.norms["merge"] == pytest.approx([np.hypot(0.25, 0.75), 4 * np.hypot(0.25, 0.75)])
    assert found.ratio == pytest.approx([np.sqrt(2) / np.hypot(0.25, 0.75)] * 2)
    assert found.share == pytest.approx(1)
    for label, path in found.points.items():  # everything lies in the plane, so distances are kept
        assert [float(np.hypot(*point)) for point in path] == pytest.approx(found.norms[label])


def test_without_snapshots_there_is_nothing(tmp_path: Path) -> None:
    folders = {"branch 0": write(tmp_path / "0", [[0.0], [1.0]]), "branch 1": tmp_path / "none"}
    assert trajectories(folders, ["branch 0", "branch 1"], [0.5, 0.5]) is None


@pytest.mark.parametrize("other", [None, [1.0, 2.0]])
def test_a_damaged_snapshot_is_named_and_the_way_left_out(other, tmp_path: Path, caplog) -> None:
    folder = write(tmp_path / "0", [[0.0], [1.0]])
    if other is None:
        (folder / "001.npy").write_bytes(b"no")
    else:
        np.save(folder / "001.npy", other)
    assert trajectories({"branch 0": folder}, ["branch 0"], [1.0]) is None
    assert "001.npy: " in caplog.text
    assert "the branches' paths are left out" in caplog.text
