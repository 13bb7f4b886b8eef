"""`adversarial`: the paper's conflict-induced control, which puts conflicting datasets into the same group.

MERIT's cuts make the spread Σ_k w_k ‖ḡ_k − ḡ‖² between groups large; this splitter makes it small. It starts from a
random balanced partition and swaps datasets between groups, or moves one, taking always the step that lowers the
spread most among those that leave the tokens balanced (no worse than the start, or within 5% of the mean group),
until none does. Every group then averages to nearly the same gradient, and the conflict is inside the groups. The
paper does not say how it built its control; for r = 1 any balanced minimiser of the spread is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merit.split.partition import Group, Partition
from merit.split.splitter import SplitRequest, Splitter
from merit.split.splitters.random import random_partition

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]


SLACK = 0.05  # of a group's mean tokens
MAX_STEPS = 10_000  # each step lowers the spread, so this bounds time, and never correctness
_EPSILON = 1e-12  # a relative gain below it is rounding


def adversarial_partition(
    names: Sequence[str], similarity: Matrix, tokens: Mapping[str, int], *, r: int, seed: int
) -> Partition:
    """K = 2^r groups, each as conflicting inside as balance allows. `similarity` is in the order of `names`.

    Raises:
        InputError: fewer datasets than groups.
    """
    import numpy as np

    start = random_partition(tokens, r=r, seed=seed)
    order = sorted(names)
    index = [names.index(name) for name in order]
    matrix = similarity[np.ix_(index, index)]
    weights = np.array([max(tokens[name], 0) for name in order], dtype=np.float64)
    if weights.sum() == 0:
        weights[:] = 1
    label = np.array([start.group_of[name] for name in order])
    descend(matrix, weights, label, 2**r)
    groups = [[order[i] for i in np.flatnonzero(label == k)] for k in range(2**r)]
    return Partition(
        splitter="adversarial",
        groups=[Group(datasets=group, tokens=sum(tokens[name] for name in group)) for group in groups],
        scores={},
        cuts=[],
        seed=seed,
    )


def descend(matrix: Matrix, weights: Vector, label: NDArray[np.int64], k: int) -> None:
    """Steepest descent of the spread over moves and swaps; `label` is changed in place."""
    import numpy as np

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
        import numpy as np

        load_a, load_b = self.load[a] - change, self.load[b] + change
        with np.errstate(divide="ignore", invalid="ignore"):
            after = inner_a / load_a + inner_b / load_b
        before = (self.inner / self.load)[a] + (self.inner / self.load)[b]
        worst = np.maximum(np.abs(load_a - self.mean), np.abs(load_b - self.mean))
        allowed = (a != b) & (worst <= self.limit) & (load_a > 0) & (load_b > 0)
        return np.where(allowed, before - after, -np.inf)


def _move_gains(s: _State) -> Matrix:
    """(T, K): gain of moving dataset i into group k. A group's last dataset stays."""
    import numpy as np

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
    import numpy as np

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


def _partition(request: SplitRequest) -> Partition:
    similarity = request.measured_similarity()
    return adversarial_partition(list(request.tokens), similarity, request.tokens, r=request.r, seed=request.seed)


SPLITTER = Splitter(
    label="conflict-induced split",
    how="so that conflicting datasets stand together (the paper's negative control)",
    partition=_partition,
    role="control",
)
