"""The order of examples: all of them, by seed and epoch alone, sorted inside a step."""

from __future__ import annotations

import numpy as np

from merit.train.rows import Batching, StepSampler

LENGTHS = [7, 3, 9, 1, 5, 5, 2, 8, 4, 6]
FOUR = Batching(4, micro=4, accumulation=1, processes=1)


def test_every_example_once_an_epoch() -> None:
    sampler = StepSampler(LENGTHS, FOUR, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(10))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(StepSampler(LENGTHS, FOUR, seed=4)) != first


def test_a_step_is_sorted_by_length_and_drawn_at_random() -> None:
    order = list(StepSampler(LENGTHS, FOUR, seed=3))
    shuffled = np.random.default_rng([3, 0]).permutation(10)
    for start in (0, 4, 8):
        window = order[start : start + 4]
        assert set(window) == set(shuffled[start : start + 4])
        lengths = [LENGTHS[index] for index in window]
        assert lengths == sorted(lengths, reverse=True)


def test_rows_without_loss_fill_each_step() -> None:
    order = list(StepSampler(LENGTHS, Batching(5, micro=2, accumulation=3, processes=1), seed=3))
    assert [row == len(LENGTHS) for row in order] == ([False] * 5 + [True]) * 2
    # The last step is a short one: it needs no more than whole micro-batches on every process.
    order = list(StepSampler(LENGTHS, Batching(8, micro=2, accumulation=2, processes=2), seed=3))
    assert [row == len(LENGTHS) for row in order] == [False] * 10 + [True] * 2
