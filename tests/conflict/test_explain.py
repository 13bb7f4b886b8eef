"""Explanations by hand: planted conflict in a known place."""

from __future__ import annotations

import numpy as np
import pytest
from sketches import cosines

from merit.base.errors import InputError
from merit.conflict.axes import principal_axes
from merit.conflict.explain import explain, kind_of, layer_of
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo

PARAMETERS = [("embed.weight", [4], 0), ("layers.0.mlp.up.weight", [6], 0), ("layers.1.mlp.up.weight", [5], 0)]


@pytest.fixture
def planted(tmp_path):
    """a, b against c, d in layer 1 only; d2 repeats d with twice the tokens' sum."""
    layout = SketchLayout.plan(SketchSpec(kind="full"), PARAMETERS)
    store = SketchStore.create(tmp_path, StoreInfo(model_fingerprint="m", precision="fp32", layout=layout))
    rng = np.random.default_rng(0)
    rows = {}
    for name, sign in (("a", 1), ("b", 1), ("c", -1), ("d", -1)):
        rows[name] = np.concatenate(
            [[1.0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0], [sign, 0.1 * rng.standard_normal(), 0, 0, 0]]
        )
    rows["d2"] = 2 * rows["d"]
    for name, vector in rows.items():
        row = RowInfo(name=name, fingerprint="f", numbers=15, examples=(1, 1), tokens=(1, 1), losses=(1, 1))
        store.write(row, np.stack([vector / 2, vector / 2]).astype(np.float32))
    matrix = cosines(np.stack(list(rows.values())))
    return store, principal_axes(list(rows), matrix, axes=1), matrix


def test_planted(planted):
    store, axes, matrix = planted
    found = explain(store, axes, matrix)
    assert {found.pairs[0].first, found.pairs[0].second} & {"a", "b"}
    assert found.pairs[0].centred < 0
    assert ("d", "d2") in [(p.first, p.second) for p in found.duplicates]
    assert [c.name for c in found.layers] == ["layer 0", "layer 1", "outside layers"]
    assert found.layers[1].share > 0.99
    assert found.layers[1].axes[0] > 0.999
    assert found.kinds[0].name == "mlp.up"
    assert found.kinds[0].numbers == 11
    for shares in ([c.share for c in found.layers], [c.axes[0] for c in found.kinds]):
        assert sum(shares) == pytest.approx(1)
    ends = found.axes[0]
    assert {frozenset(ends.low), frozenset(ends.high)} == {frozenset("ab"), frozenset({"c", "d", "d2"})}
    assert 0.99 < ends.share <= 1


def test_blocks_do_not_matter(planted, monkeypatch):
    want = explain(*planted)
    monkeypatch.setattr("merit.conflict.explain.BLOCK_BYTES", 40)
    assert [c.share for c in explain(*planted).layers] == pytest.approx([c.share for c in want.layers])


def test_names():
    assert layer_of("model.layers.12.mlp.up_proj.weight") == "layer 12"
    assert layer_of("lm_head.weight") == "outside layers"
    assert kind_of("model.layers.12.mlp.up_proj.weight") == "mlp.up_proj"
    assert kind_of("transformer.h.0.attn.c_attn.bias") == "attn.c_attn bias"
    assert kind_of("model.norm.weight") == "model.norm"


def test_hashed(planted, tmp_path):
    store, axes, matrix = planted
    spec = store.info.layout.spec.model_copy(update={"hashed": 8})
    layout = store.info.layout.model_copy(update={"spec": spec})
    hashed = SketchStore(tmp_path, store.info.model_copy(update={"layout": layout}))
    with pytest.raises(InputError, match="cannot be explained"):
        explain(hashed, axes, matrix)
