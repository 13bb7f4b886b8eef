"""Stores made of chosen vectors, for tests that know the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.conflict.similarity import HalfGram
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo


def store_of(folder: Path, rows: dict[str, tuple[np.ndarray, tuple[int, int]]]) -> SketchStore:
    """`rows`: name → (half sums (2 × numbers), tokens of the halves)."""
    numbers = next(iter(rows.values()))[0].shape[1]
    layout = SketchLayout.plan(SketchSpec(kind="full"), [("w", [numbers], 0)])
    store = SketchStore.create(folder, StoreInfo(model_fingerprint="m", precision="fp32", layout=layout))
    for name, (sums, tokens) in rows.items():
        row = RowInfo(
            name=name,
            fingerprint="f",
            numbers=numbers,
            examples=(2, 1 if tokens[1] else 0),
            tokens=tokens,
            losses=(float(tokens[0]), 2.0 * tokens[1]),
        )
        store.write(row, sums.astype(np.float32))
    return store


def noisy_store(
    folder: Path,
    *,
    count: int = 6,
    width: int = 400,
    noise: float = 1.0,
    seed: int = 0,
    tokens: tuple[int, int] = (9, 9),
) -> tuple[SketchStore, np.ndarray]:
    """True mean gradients (count × width) and a store of noisy halves; noise falls with tokens as sampling does."""
    sums, truth = noisy_sums(count=count, width=width, noise=noise, seed=seed, tokens=tokens)
    return store_of(folder, {f"d{i}": (sums[i], tokens) for i in range(count)}), truth


def noisy_sums(
    *, count: int = 6, width: int = 400, noise: float = 1.0, seed: int = 0, tokens: tuple[int, int] = (9, 9)
) -> tuple[np.ndarray, np.ndarray]:
    """Half sums (count × 2 × width) around true means (count × width); the truth stays, the noise follows `seed`."""
    rng = np.random.default_rng(1234)
    truth = rng.standard_normal((count, width)) * 0.3 + rng.standard_normal(width) * 0.3
    rng = np.random.default_rng(seed)
    n = np.array(tokens)[None, :, None]
    return n * truth[:, None] + noise * np.sqrt(n) * rng.standard_normal((count, 2, width)), truth


def noisy_gram(*, tokens: tuple[int, int] = (9, 9), **options: Any) -> tuple[HalfGram, np.ndarray]:
    """Their products, without a store."""
    sums, truth = noisy_sums(tokens=tokens, **options)
    names = tuple(f"d{i}" for i in range(len(sums)))
    return HalfGram(names, np.einsum("ihd,jkd->ihjk", sums, sums), np.array([tokens] * len(sums))), truth


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T
