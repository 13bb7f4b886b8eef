"""The examples that losses are taken on, and the losses of the model as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError, StageError
from merit.compute.losses import example_losses
from merit.data.example import Encoded
from merit.data.store import EncodedDataset
from merit.diagnose.resample import Resampler
from merit.models.loading import Precision


@dataclass(frozen=True)
class LossSet:
    """Examples of several datasets.

    Attributes:
        owner: the dataset's index of each row.
    """

    rows: Sequence[Encoded]
    owner: Sequence[int]
    batch_tokens: int = 4096
    precision: Precision = "fp32"
    seed: int = 0

    @classmethod
    def of(
        cls,
        datasets: Sequence[EncodedDataset],
        count: int,
        *,
        held_out: bool,
        batch_tokens: int = 4096,
        precision: Precision = "fp32",
        seed: int = 0,
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
    def tokens(self) -> list[int]:
        """Supervised tokens of each row; nothing predicts the first token."""
        return [row.supervised for row in self.rows]

    @cached_property
    def resampler(self) -> Resampler:
        return Resampler(self.tokens, self.owner, seed=self.seed)

    @property
    def datasets(self) -> int:
        return len(set(self.owner))

    def measure(self, model: Any, what: str, advance: Callable[[int], None] = lambda _: None) -> NDArray[np.float64]:
        """(N,) mean loss of each example, in nats a supervised token.

        Raises:
            StageError: a loss is not finite; `what` says of which weights.
        """
        losses, _ = example_losses(
            model, self.rows, batch_tokens=self.batch_tokens, precision=self.precision, advance=advance
        )
        found = np.asarray(losses, np.float64)
        if not np.isfinite(found).all():
            raise StageError(f"the loss of {what} is not finite: these weights are far outside any basin")
        return found
