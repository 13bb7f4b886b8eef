"""What `batch_tokens` comes to, in examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.train.rows import StepSampler, plan_batching


@pytest.mark.parametrize(
    ("lengths", "batch", "micro", "processes", "expected"),
    [
        ([100] * 50, 800, 4096, 1, (8, 8, 1)),  # eight examples of a hundred, in one pass
        ([100] * 50, 800, 400, 1, (8, 4, 2)),  # four fit a pass
        ([50, 150] * 25, 800, 450, 1, (8, 3, 3)),  # the longest decides what fits; 8 are spread over 3 passes
        ([100] * 50, 800, 4096, 2, (8, 4, 1)),  # half of them a process
        ([100] * 50, 700, 4096, 2, (7, 4, 1)),
        ([1000] * 3, 10, 10, 1, (1, 1, 1)),  # never less than one
        ([100] * 5, 10_000, 100_000, 1, (5, 5, 1)),  # never more than there are
    ],
)
def test_sizes(lengths: list[int], batch: int, micro: int, processes: int, expected: tuple[int, int, int]) -> None:
    sizes = plan_batching(lengths, batch, micro, processes)
    assert (sizes.examples_per_step, sizes.micro, sizes.accumulation) == expected


def cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 4),
)
def test_micro_batches_change_no_step(lengths: list[int], batch: int, micro: int, processes: int) -> None:
    sizes = plan_batching(lengths, batch, micro, processes)
    assert sizes.micro == 1 or sizes.micro * max(lengths) <= micro
    wanted = max(1, min(len(lengths), round(batch / (sum(lengths) / len(lengths)))))
    assert sizes.examples_per_step == wanted
    assert sizes.rows_per_step - wanted < processes * (1 + sizes.accumulation)
    # The trainer cuts the rows into micro-batches, and these into steps.
    rows = list(StepSampler(lengths, sizes, seed=1))
    whole = list(StepSampler(lengths, plan_batching(lengths, batch, 10**9), seed=1))
    assert len(rows) == len(StepSampler(lengths, sizes, seed=1))
    assert processes == 1 or len(rows) % (sizes.micro * processes) == 0
    steps = cut(rows, sizes.rows_per_step)
    assert [[row for row in step if row < len(lengths)] for step in steps] == cut(whole, wanted)
    assert len(steps) == sizes.steps(len(lengths), 1)


@given(st.integers(1, 200), st.integers(1, 40))
def test_another_trainer_takes_the_same_examples_a_step(wanted: int, most: int) -> None:
    sizes = plan_batching([10] * 200, 10 * wanted, 10 * most).unfilled
    assert sizes.rows_per_step == sizes.examples_per_step == wanted
    assert sizes.micro <= most
