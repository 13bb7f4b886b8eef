"""The examples that losses are measured on, the losses of a model as it stands, and the intervals of their means.

Intervals are a bootstrap over examples, within each dataset, with the same draws for all models (paired).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError, StageError
from merit.data.example import Encoded
from merit.diagnose.records import Estimate

if TYPE_CHECKING:
    from merit.base.progress import Counter
    from merit.data.store import EncodedDataset
    from merit.diagnose.live import LiveModel
    from merit.models.loading import Precision

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

DRAWS = 1000
_LOW, _HIGH = 2.5, 97.5


class Resampler:
    """Mean loss of a set of examples and of its bootstrap resamples, as matrix products.

    The mean is the results table's: token-weighted within a dataset, unweighted over datasets. It says how a result
    depends on the choice of examples, and nothing about seeds of training.
    """

    def __init__(self, tokens: Sequence[int], owner: Sequence[int], *, seed: int = 0, draws: int = DRAWS) -> None:
        n, who = np.asarray(tokens, np.float64), np.asarray(owner, np.int64)
        rng = np.random.default_rng(seed)
        self._plain = np.zeros(len(n))
        self._drawn = np.zeros((draws, len(n)))
        datasets = np.unique(who)
        for dataset in datasets:
            members = np.flatnonzero(who == dataset)
            counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
            weighted = counts * n[members]
            self._plain[members] = n[members] / n[members].sum() / len(datasets)
            self._drawn[:, members] = weighted / weighted.sum(1, keepdims=True) / len(datasets)

    def mean(self, losses: Matrix) -> Vector:
        """(P,) means of (P, N) losses."""
        found: Vector = losses @ self._plain
        return found

    def drawn(self, losses: Matrix) -> Matrix:
        """(draws, P) means of the resamples."""
        found: Matrix = self._drawn @ losses.T
        return found

    def estimate(self, losses: Vector) -> Estimate:
        """Mean of (N,) losses or of differences of losses, with its interval."""
        return interval(float(self.mean(losses[None, :])[0]), self.drawn(losses[None, :])[:, 0])


def interval(value: float, draws: Vector) -> Estimate:
    """`value` with the middle 95% of `draws`."""
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return Estimate(value=value, low=float(low), high=float(high))


@dataclass(frozen=True)
class LossSet:
    """Examples of several datasets.

    Attributes:
        owner: the dataset's index of each row.
    """

    rows: Sequence[Encoded]
    owner: Sequence[int]
    batch_tokens: int
    precision: Precision
    seed: int

    @classmethod
    def of(
        cls,
        datasets: Sequence[EncodedDataset],
        count: int,
        *,
        held_out: bool,
        batch_tokens: int,
        precision: Precision,
        seed: int,
    ) -> LossSet:
        """The first `count` held-out (or training) rows of each dataset, in order of content hash.

        Raises:
            InputError: a dataset has none.
        """
        rows: list[Encoded] = []
        owner: list[int] = []
        for index, dataset in enumerate(datasets):
            chosen = (dataset.held_out if held_out else dataset.train)[:count]
            if not len(chosen):
                raise InputError(f"no {'held-out' if held_out else 'training'} example", file=dataset.path)
            for row in chosen:
                example = dataset[int(row)]
                rows.append(example.encoded)
                owner.append(index)
        # Both sets are often of one size: with one seed they would be resampled alike.
        return cls(rows, owner, batch_tokens, precision, seed + (not held_out))

    @cached_property
    def resampler(self) -> Resampler:
        return Resampler([row.supervised for row in self.rows], self.owner, seed=self.seed)

    def measure(self, model: Any, what: str, advance: Callable[[int], None] = lambda _: None) -> NDArray[np.float64]:
        """(N,) mean loss of each example, in nats a supervised token.

        Raises:
            StageError: a loss is not finite; `what` says of which weights.
        """
        from merit.compute.losses import example_losses

        losses, _ = example_losses(
            model, self.rows, batch_tokens=self.batch_tokens, precision=self.precision, advance=advance
        )
        found = np.asarray(losses, np.float64)
        if not np.isfinite(found).all():
            raise StageError(f"the loss of {what} is not finite: these weights are far outside any basin")
        return found


def losses_at(
    live: LiveModel, coefficients: Mapping[str, float], what: str, sets: Mapping[str, LossSet], counter: Counter
) -> dict[str, list[float]]:
    """Name of a set → loss of each of its examples at θ = Σ c_label θ_label, called `what` in errors.

    Raises:
        StageError: a loss is not finite.
    """
    live.set(coefficients)
    return {name: examples.measure(live.model, what, counter).tolist() for name, examples in sets.items()}
