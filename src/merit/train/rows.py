"""The rows that a branch trains on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Sampler

from merit.base.files import inside
from merit.data.example import IGNORED, Encoded
from merit.data.store import IMAGES, EncodedDataset
from merit.run.layout import RunDir
from merit.train.spec import BranchSpec


def branch_rows(run: RunDir, spec: BranchSpec) -> Any:
    """A `datasets.Dataset` of `input_ids` and `labels`, one epoch of the branch, weights applied.

    Raises:
        InputError: a file of encoded examples is missing or damaged.
    """
    parts = []
    for item in spec.data:
        encoded = EncodedDataset.open(inside(run.root, item.data))
        rows = encoded.weighted_train(item.weight, spec.seed)
        wanted = [name for name in ("input_ids", "labels", IMAGES) if name in encoded.table.column_names]
        table = datasets.Dataset(encoded.table.select(wanted))
        parts.append(table.select(rows))
    return datasets.concatenate_datasets(parts)


def row_without_loss(rows: Any) -> Any:
    """A row without loss, which fills micro-batches (StepSampler)."""
    row: dict[str, Any] = {name: [None] for name in rows.column_names}
    row |= {"input_ids": [[0, 0]], "labels": [[IGNORED, IGNORED]]}
    return datasets.Dataset.from_dict(row, features=rows.features)


def training_rows(root: Path, spec: BranchSpec, wanted: int) -> list[Encoded]:
    """About `wanted` training examples of the branch, equally many from each dataset.

    Args:
        root: the folder that the spec's paths are relative to.
    """
    each = -(-wanted // len(spec.data))
    found: list[Encoded] = []
    for item in spec.data:
        stored = EncodedDataset.open(inside(root, item.data))
        rows = [stored[int(row)] for row in stored.weighted_train(item.weight, spec.seed)[:each]]
        found += [row.encoded for row in rows]
    return found


@dataclass(frozen=True)
class Batching:
    """Batch sizes in examples.

    Attributes:
        examples_per_step: examples of an optimizer step, on all processes. It does not depend on the sizes below.
        micro: rows per forward pass on one process.
        accumulation: micro-batches per step on one process.
    """

    examples_per_step: int
    micro: int
    accumulation: int
    processes: int

    @property
    def rows_per_step(self) -> int:
        """Rows that a step has room for: its examples, and rows without loss that fill its micro-batches."""
        return self.micro * self.accumulation * self.processes

    @property
    def unfilled(self) -> Batching:
        """The same step of one process in equal micro-batches, for a trainer that cannot fill them."""
        examples = self.examples_per_step
        micro = max(size for size in range(1, self.micro + 1) if examples % size == 0)
        return Batching(examples, micro, examples // micro, processes=1)

    def steps(self, examples: int, epochs: float) -> int:
        """Optimizer steps for `epochs` epochs of `examples` examples, as transformers counts them."""
        return math.ceil(-(-examples // self.examples_per_step) * epochs)


class StepSampler(Sampler[int]):
    """A seeded shuffle, cut into windows of one optimizer step, each window sorted by length.

    A step's gradient is a token-weighted sum over its window, so the order inside does not matter. Sorting puts
    examples of similar length into one micro-batch, which saves padding. The order depends on (seed, epoch) alone, so a
    resumed branch sees the same examples as an undisturbed one.

    The trainer takes the same number of rows in every micro-batch, and as many micro-batches in every step. Index
    `len(lengths)`, a row without loss, fills what a window leaves empty: so micro-batches change no step. Processes
    that train together must get equally many micro-batches in the last step, too, where accelerate would repeat the
    epoch's first examples.
    """

    def __init__(self, lengths: Sequence[int], batching: Batching, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batching = batching
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batching.examples_per_step)
        return whole * self.batching.rows_per_step + rest + self._fill(rest)

    def _fill(self, examples: int) -> int:
        """Rows without loss after a step of so many examples."""
        if examples == self.batching.examples_per_step:
            return self.batching.rows_per_step - examples
        processes = self.batching.processes
        return -examples % (self.batching.micro * processes) if processes > 1 else 0

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.batching.examples_per_step):
            window = order[start : start + self.batching.examples_per_step]
            yield from window[np.argsort(-self.lengths[window], kind="stable")].tolist()
            yield from [len(self.lengths)] * self._fill(len(window))


def plan_batching(lengths: Sequence[int], batch_tokens: int, micro_batch_tokens: int, processes: int = 1) -> Batching:
    """Sizes such that a step has `batch_tokens` tokens on average, and a forward pass at most `micro_batch_tokens`.

    They follow from the branch's own mean length. So the steps of every branch, and of joint training, have similarly
    many tokens, although the lengths of their examples differ.
    """
    mean = sum(lengths) / len(lengths)
    wanted = max(1, min(len(lengths), round(batch_tokens / mean)))
    each = -(-wanted // processes)
    most = max(1, min(each, micro_batch_tokens // max(lengths)))
    accumulation = -(-each // most)
    return Batching(wanted, micro=-(-each // accumulation), accumulation=accumulation, processes=processes)
