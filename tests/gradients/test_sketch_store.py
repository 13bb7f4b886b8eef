"""The store: whole rows or none, and never another model's."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from merit.base.errors import InputError
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo

LAYOUT = SketchLayout.plan(SketchSpec(kind="fold", fold=4, least=1), [("w", [6, 10], 1), ("norm", [7], 0)])


def info(model="m"):
    return StoreInfo(model_fingerprint=model, precision="fp32", layout=LAYOUT)


def row(name="a", fingerprint="f"):
    return RowInfo(
        name=name, fingerprint=fingerprint, numbers=25, examples=(2, 1), tokens=(30, 10), losses=(60.0, 30.0)
    )


def sums(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 25)).astype(np.float32)


def test_round_trip_and_numpy_alone(tmp_path):
    store = SketchStore.create(tmp_path, info())
    store.write(row("ä/../b"), sums())
    again = SketchStore.open(tmp_path)
    found = again.find("ä/../b", {"f"})
    assert found is not None
    assert found.model_copy(update={"sha256": ""}) == row("ä/../b")
    assert again.row("ä/../b").loss == 90 / 40
    np.testing.assert_allclose(again.read_halves("ä/../b"), sums(), atol=1e-6)
    np.testing.assert_allclose(again.read_halves("ä/../b", 5, 9), sums()[:, 5:9], atol=1e-6)
    [file] = (tmp_path / "rows").glob("*.f32")
    total, first = np.fromfile(file, dtype="<f4").reshape(2, -1)
    assert np.array_equal(total, sums()[0] + sums()[1])
    assert np.array_equal(first, sums()[0])
    tensors = json.loads((tmp_path / "info.json").read_text())["layout"]["tensors"]
    assert [(t["name"], t["start"], t["size"]) for t in tensors] == [("w", 0, 18), ("norm", 18, 7)]


def test_mismatch_truncation_and_damage_mean_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="merit")
    store = SketchStore.create(tmp_path, info())
    assert store.find("a", {"f"}) is None
    assert not caplog.records
    store.write(row(), sums())
    assert store.find("a", {"other"}) is None
    assert "another model" in caplog.text
    with store.path("a").open("r+b") as handle:
        handle.truncate(100)
    assert store.find("a", {"f"}) is None
    assert "a: its sketch is damaged or missing; measuring it again" in caplog.text
    with pytest.raises(InputError, match="damaged"):
        store.row("a")
    with pytest.raises(InputError, match="truncated"):
        store.read_halves("a")
    store.write(row(), sums())
    assert store.find("a", {"f"}) is not None
    content = bytearray(store.path("a").read_bytes())
    content[70] ^= 1
    store.path("a").write_bytes(content)
    assert store.find("a", {"f"}) is None
    store.write(row(), sums())
    marker = store.path("a").with_suffix(".json")
    marker.write_text(marker.read_text().replace("60.0", "61.0"))
    assert store.find("a", {"f"}) is None
    store.write(row(), sums())
    store.path("a").with_suffix(".json").write_text("{")
    assert store.find("a", {"f"}) is None
    assert "damaged" in caplog.text


def test_a_kill_before_the_marker_leaves_no_row(tmp_path, monkeypatch):
    store = SketchStore.create(tmp_path, info())
    store.write(row(), sums(1))
    monkeypatch.setattr(RowInfo, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(row(), sums(2))
    monkeypatch.undo()
    assert store.find("a", {"f"}) is None


def test_a_row_of_another_length_is_not_whole(tmp_path):
    store = SketchStore.create(tmp_path, info())
    store.write(row(), sums())
    longer = SketchLayout.plan(SketchSpec(kind="full"), [("w", [6, 10], 1)])
    other = SketchStore.create(tmp_path, StoreInfo(model_fingerprint="m", precision="fp32", layout=longer))
    assert other.find("a", {"f"}) is None


def test_long_rows_have_a_hashed_companion(tmp_path, monkeypatch):
    monkeypatch.setattr("merit.gradients.store.HASHED", 6)
    store = SketchStore.create(tmp_path, info())
    assert store.companion is not store
    store.write(row(), sums())
    assert store.companion.numbers == 6
    assert SketchStore.open(store.companion.folder).find("a", {"f"}) is not None
    np.testing.assert_allclose(store.companion.read_halves("a"), LAYOUT.hash(sums(), 6), atol=1e-5)


def test_hashed_rows(tmp_path):
    spec = LAYOUT.spec.model_copy(update={"hashed": 8})
    layout = LAYOUT.model_copy(update={"spec": spec})
    store = SketchStore.create(tmp_path, StoreInfo(model_fingerprint="m", precision="fp32", layout=layout))
    assert store.numbers == 8
    assert str(spec) == "fold 4, seed 0, hashed to 8"
    store.write(row().model_copy(update={"numbers": 8}), sums())
    assert store.row_bytes == store.path("a").stat().st_size == 64
    np.testing.assert_allclose(store.read_halves("a"), LAYOUT.hash(sums(), 8), atol=1e-5)
