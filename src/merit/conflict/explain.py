"""Where the conflict is: which pairs fight, which layers and kinds of module carry it, which datasets are the same.

The conflict along axis k is its eigenvalue λ_k = ‖Σ_i U_ik û_i‖², a sum over parameters: each one's share is exact. The
conflict as a whole is Σ_i ‖û_i − ū‖², a sum over parameters as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import Record
from merit.conflict.axes import AxesResult, centred
from merit.conflict.similarity import DUPLICATE
from merit.gradients.sketch import TensorSketch
from merit.gradients.store import SketchStore

BLOCK_BYTES = 256 * 2**20


class Pair(Record):
    """Two datasets. `centred` is what is left of their cosine without what all datasets share: negative is conflict."""

    first: str
    second: str
    cosine: float
    centred: float


class Carrier(Record):
    """A layer or a kind of module, and its share of the whole conflict and of each axis's (each sums to 1)."""

    name: str
    numbers: int  # of the sketch
    share: float
    axes: list[float]


class AxisEnds(Record):
    """The datasets farthest out on one axis, outermost first."""

    axis: int
    share: float  # of the whole conflict
    low: list[str]
    high: list[str]


class Explanation(Record):
    """What `merit conflict --explain` shows."""

    pairs: list[Pair]  # the most conflicting first
    duplicates: list[Pair]
    axes: list[AxisEnds]
    layers: list[Carrier]  # in model order; what belongs to no layer last
    kinds: list[Carrier]  # largest share first


def explain(
    store: SketchStore, axes: AxesResult, similarity: NDArray[np.float64], *, pairs: int = 10, ends: int = 5
) -> Explanation:
    """Reads every sketch once, parameter by parameter; memory is bounded by one block of a parameter.

    Raises:
        InputError: the sketches were hashed, so no number belongs to a parameter any more.
    """
    if store.info.layout.spec.hashed:
        raise InputError("hashed sketches cannot be explained layer by layer", field="calibration.hashed")
    ranked = _pairs(axes.names, similarity)
    total, along = _shares(store, axes)
    tensors = store.info.layout.tensors
    spread = float(np.trace(centred(similarity)))
    return Explanation(
        pairs=ranked[:pairs],
        duplicates=sorted((p for p in ranked if p.cosine > DUPLICATE), key=lambda p: -p.cosine),
        axes=[_ends(axes, k, spread, ends) for k in range(len(axes.scores[0]))],
        layers=_carriers(tensors, [layer_of(t.name) for t in tensors], total, along),
        kinds=sorted(
            _carriers(tensors, [kind_of(t.name) for t in tensors], total, along), key=lambda c: (-c.share, c.name)
        ),
    )


def layer_of(name: str) -> str:
    """`layer 3` for `model.layers.3.mlp.up_proj.weight`; `outside layers` for embeddings, head, final norm."""
    found = re.search(r"\.(\d+)\.", f".{name}")
    return f"layer {found.group(1)}" if found else "outside layers"


def kind_of(name: str) -> str:
    """The module's own name, without numbers: `mlp.up_proj`; biases apart."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    stem = parts[:-1] if parts[-1] in ("weight", "bias") else parts
    return ".".join(stem[-2:]) + (" bias" if parts[-1] == "bias" else "")


def _pairs(names: list[str], similarity: NDArray[np.float64]) -> list[Pair]:
    left = centred(similarity)
    pairs = [
        Pair(first=names[i], second=names[j], cosine=float(similarity[i, j]), centred=float(left[i, j]))
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    return sorted(pairs, key=lambda p: (p.centred, p.first, p.second))


def _ends(axes: AxesResult, k: int, spread: float, count: int) -> AxisEnds:
    order = sorted(range(len(axes.names)), key=lambda i: (axes.scores[i][k], axes.names[i]))
    low = [axes.names[i] for i in order if axes.scores[i][k] < 0][:count]
    high = [axes.names[i] for i in reversed(order) if axes.scores[i][k] > 0][:count]
    return AxisEnds(axis=k, share=axes.eigenvalues[k] / spread if spread > 0 else 0.0, low=low, high=high)


def _shares(store: SketchStore, axes: AxesResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) each parameter's part of the whole conflict, and (P, axes) of each axis's; every column sums to 1."""
    names = axes.names
    squares = np.zeros(len(names))
    tensors = store.info.layout.tensors
    scores = np.array(axes.scores)
    mixing = np.hstack([np.eye(len(names)) - 1 / len(names), scores])  # (T, T + axes)
    power = np.zeros((len(tensors), mixing.shape[1]))
    # Norms are not stored with the rows, so they come from a first pass over the same blocks.
    for _, block in _blocks(store, names):
        squares += np.einsum("td,td->t", block, block, dtype=np.float64)
    scale = 1 / np.sqrt(squares)
    for p, block in _blocks(store, names):
        mixed = (mixing * scale[:, None]).T.astype(np.float32) @ block
        power[p] += np.einsum("md,md->m", mixed, mixed, dtype=np.float64)
    total = power[:, : len(names)].sum(1)
    along = power[:, len(names) :]
    return total / max(total.sum(), 1e-300), along / np.maximum(along.sum(0), 1e-300)


def _blocks(store: SketchStore, names: list[str]) -> Iterable[tuple[int, NDArray[np.float32]]]:
    """(index of the parameter, (T × columns) gradient sums), block by block."""
    columns = max(1, BLOCK_BYTES // (4 * len(names)))
    for p, tensor in enumerate(store.info.layout.tensors):
        for start in range(tensor.start, tensor.stop, columns):
            stop = min(start + columns, tensor.stop)
            block = np.empty((len(names), stop - start), dtype=np.float32)
            for i, name in enumerate(names):
                store.read_total(name, start, block[i])
            yield p, block


def _carriers(
    tensors: list[TensorSketch], labels: list[str], total: NDArray[np.float64], along: NDArray[np.float64]
) -> list[Carrier]:
    members: dict[str, list[int]] = defaultdict(list)
    for p, label in enumerate(labels):
        members[label].append(p)
    carriers = [
        Carrier(
            name=label,
            numbers=sum(tensors[p].size for p in parts),
            share=float(total[parts].sum()),
            axes=along[parts].sum(0).tolist(),
        )
        for label, parts in members.items()
    ]
    return sorted(carriers, key=lambda c: c.name == "outside layers")
