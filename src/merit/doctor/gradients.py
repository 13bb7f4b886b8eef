"""Mean gradients of the same datasets, computed in several ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.base.machine import free_memory
from merit.compute.abilities import Abilities
from merit.config.sections import CalibrationConfig
from merit.data.example import Encoded
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec

Rows = NDArray[np.float32]  # (datasets, numbers of the sketch)
_SHARE = 0.5  # of the free memory that whole gradients may take
_LAYER = re.compile(r"^(.*?\.)(\d+)\.")


class Gradients:
    """One model, one scope. Every method gives (datasets, numbers) sketched gradient sums."""

    def __init__(self, model: Any, datasets: Sequence[Sequence[Encoded]], on_tokens: Callable[[int], None]) -> None:
        self._model, self._datasets, self._on_tokens = model, datasets, on_tokens
        self._config = CalibrationConfig()
        self._fold = SketchSpec.of(self._config)
        self._abilities = Abilities.of(model, next(model.parameters()).device)
        self.packs = self._abilities.packed
        self.scope = affordable_scope(model, len(datasets))

    def alone(self) -> Rows:
        """One example a forward pass."""
        return self._measure(self._fold, batch_tokens=1, packing=False)

    def padded(self) -> Rows:
        """In padded batches."""
        return self._measure(self._fold, packing=False)

    def packed(self) -> Rows:
        """In packed rows, as merit measures."""
        return self._measure(self._fold)

    def packed_in_bf16(self) -> Rows:
        """The same under autocast."""
        return self._measure(self._fold, precision="bf16")

    def formed(self) -> Rows:
        """Folded after every gradient was formed in full, instead of on the way."""
        return self._measure(self._fold, intercept=False)

    def whole(self) -> Rows:
        """Not folded at all."""
        return self._measure(SketchSpec(kind="full"))

    def _measure(self, spec: SketchSpec, **options: Any) -> Rows:
        scoped = spec.model_copy(update={"scope": self.scope})
        options.setdefault("batch_tokens", self._config.batch_tokens)
        engine = GradientEngine(self._model, scoped, abilities=self._abilities, **options)
        rows = np.empty((len(self._datasets), engine.layout.width), np.float32)
        for k, examples in enumerate(self._datasets):
            np.sum(engine.measure(f"text {k}", examples, self._on_tokens).sums, axis=0, out=rows[k])
        return rows


def affordable_scope(model: Any, datasets: int) -> str:
    """All parameters ("") where whole gradients of so many datasets fit into memory, else those of a middle layer."""
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    size = 4 * sum(count for _, count in trained)
    device = next(model.parameters()).device
    fits = (datasets + 5) * size < _SHARE * free_memory()
    if device.type == "cuda":
        fits = fits and 3 * size < _SHARE * torch.cuda.mem_get_info(device)[0]
    return "" if fits else middle_layer([name for name, _ in trained])


def middle_layer(names: Sequence[str]) -> str:
    """A regular expression for the parameters of one layer in the middle of the longest stack; "" without a stack."""
    found = [(match[1], int(match[2])) for name in names if (match := _LAYER.match(name))]
    if not found:
        return ""
    stack = Counter(prefix for prefix, _ in found).most_common(1)[0][0]
    deepest = max(layer for prefix, layer in found if prefix == stack)
    return rf"^{re.escape(stack)}{deepest // 2}\."


def difference(a: Rows, b: Rows) -> float:
    """Largest ‖a_t − b_t‖ / ‖a_t‖ over datasets t."""
    return float(max(np.linalg.norm(x - y) / np.linalg.norm(x) for x, y in zip(a, b, strict=True)))


def cosine_error(a: Rows, b: Rows) -> float:
    """Largest difference of a cosine between two datasets."""
    return float(np.abs(_cosines(a) - _cosines(b)).max())


def _cosines(rows: Rows) -> NDArray[np.float64]:
    gram = np.array([[np.vdot(a, b) for b in rows] for a in rows], dtype=np.float64)
    norms = np.sqrt(gram.diagonal())
    cosines: NDArray[np.float64] = gram / np.outer(norms, norms)
    return cosines
