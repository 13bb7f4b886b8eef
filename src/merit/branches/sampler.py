"""The order in which a branch sees its examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """A seeded shuffle, cut into windows of one optimizer step, each window sorted by length.

    A step's gradient is a token-weighted sum over its window, whatever the order inside; sorting only puts examples
    of like length into one micro-batch, which saves the padding. The order depends on (seed, epoch) alone, so a
    resumed branch sees what an undisturbed one would have.

    Processes that train together must get equally many micro-batches. Where the last ones are short, accelerate would
    deal the epoch's first examples again; index `len(lengths)`, a row without loss, is dealt instead.
    """

    def __init__(self, lengths: Sequence[int], examples_per_step: int, seed: int, *, multiple: int = 1) -> None:
        self.lengths = np.asarray(lengths)
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.fill = -len(lengths) % multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.examples_per_step):
            window = order[start : start + self.examples_per_step]
            yield from window[np.argsort(-self.lengths[window], kind="stable")].tolist()
        yield from [len(self.lengths)] * self.fill
