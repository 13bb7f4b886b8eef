"""How many examples make a step and a micro-batch: what `batch_tokens` means for one branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Batching:
    """Batch sizes in examples."""

    micro: int  # a forward pass on one device
    accumulation: int  # micro-batches a step on one device
    processes: int

    @property
    def examples_per_step(self) -> int:
        return self.micro * self.accumulation * self.processes

    def steps(self, examples: int, epochs: float) -> int:
        """Optimizer steps for so many examples an epoch."""
        return max(1, round(-(-examples // self.examples_per_step) * epochs))


def plan_batching(lengths: Sequence[int], batch_tokens: int, micro_batch_tokens: int, processes: int = 1) -> Batching:
    """Sizes such that a step sees `batch_tokens` tokens on average, and no forward pass more than fits.

    Counting by the branch's own mean length gives every branch, and joint training, steps of like token count,
    though their examples differ in length.
    """
    mean = sum(lengths) / len(lengths)
    wanted = max(1, min(len(lengths), round(batch_tokens / mean)))
    each = max(1, -(-wanted // processes))
    most = max(1, min(each, micro_batch_tokens // max(lengths)))
    accumulation = -(-each // most)
    return Batching(micro=-(-each // accumulation), accumulation=accumulation, processes=processes)
