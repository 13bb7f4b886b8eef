"""The search of the `adversarial` splitter: steepest descent of the spread, by moving and swapping datasets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

SLACK = 0.05  # of a group's mean tokens
MAX_STEPS = 10_000  # each step lowers the spread, so this bounds time, and never correctness
_EPSILON = 1e-12  # a relative gain below it is rounding


def descend(matrix: Matrix, weights: Vector, label: NDArray[np.int64], k: int) -> None:
    """Steepest descent of the spread over moves and swaps; `label` is changed in place."""
    products = matrix * np.outer(weights, weights)  # M_ij = w_i w_j S_ij
    mean = weights.sum() / k
    limit = max(float(np.abs(np.bincount(label, weights, minlength=k) - mean).max()), SLACK * mean) * (1 + 1e-12)
    for _ in range(MAX_STEPS):
        member = np.eye(k)[label]  # (T, K)
        load = weights @ member  # (K,)
        into = products @ member  # (T, K): Σ_{j in group} M_ij
        inner = np.einsum("tk,tk->k", member, into)  # (K,): Σ_{i,j in group} M_ij
        state = _State(products, weights, label, load, into, inner, mean, limit)
        moves, swaps = _move_gains(state), _swap_gains(state)
        if max(moves.max(), swaps.max()) <= _EPSILON * abs(inner / np.maximum(load, 1e-300)).sum():
            return
        if moves.max() >= swaps.max():
            i, group = np.unravel_index(int(moves.argmax()), moves.shape)
            label[i] = group
        else:
            i, j = np.unravel_index(int(swaps.argmax()), swaps.shape)
            label[i], label[j] = label[j], label[i]


@dataclass(frozen=True)
class _State:
    products: Matrix
    weights: Vector
    label: NDArray[np.int64]
    load: Vector
    into: Matrix
    inner: Vector
    mean: float
    limit: float

    def gain(
        self, a: NDArray[np.int64], b: NDArray[np.int64], change: Matrix, inner_a: Matrix, inner_b: Matrix
    ) -> Matrix:
        """How much Σ_k inner_k / load_k falls when group a gives `change` tokens to b; −∞ where balance forbids it."""
        load_a, load_b = self.load[a] - change, self.load[b] + change
        with np.errstate(divide="ignore", invalid="ignore"):
            after = inner_a / load_a + inner_b / load_b
        before = (self.inner / self.load)[a] + (self.inner / self.load)[b]
        worst = np.maximum(np.abs(load_a - self.mean), np.abs(load_b - self.mean))
        allowed = (a != b) & (worst <= self.limit) & (load_a > 0) & (load_b > 0)
        return np.where(allowed, before - after, -np.inf)


def _move_gains(s: _State) -> Matrix:
    """(T, K): gain of moving dataset i into group k. A group's last dataset stays."""
    count, k = s.into.shape
    a = np.broadcast_to(s.label[:, None], (count, k))
    b = np.broadcast_to(np.arange(k)[None, :], (count, k))
    own = s.into[np.arange(count), s.label][:, None]
    diagonal = np.diag(s.products)[:, None]
    gain = s.gain(a, b, s.weights[:, None], s.inner[a] - 2 * own + diagonal, s.inner[b] + 2 * s.into + diagonal)
    alone = np.bincount(s.label, minlength=k)[s.label] == 1
    gain[alone] = -np.inf
    return gain


def _swap_gains(s: _State) -> Matrix:
    """(T, T): gain of exchanging datasets i and j."""
    count = len(s.label)
    a = np.broadcast_to(s.label[:, None], (count, count))
    b = a.T
    own = s.into[np.arange(count), s.label]
    other = s.into[:, s.label]  # (i, j): Σ over j's group
    diagonal = np.diag(s.products)
    both = diagonal[:, None] + diagonal[None, :] - 2 * s.products
    inner_a = s.inner[a] - 2 * own[:, None] + 2 * other.T + both
    inner_b = s.inner[b] - 2 * own[None, :] + 2 * other + both
    return s.gain(a, b, s.weights[:, None] - s.weights[None, :], inner_a, inner_b)
