"""What `batch_tokens` comes to, in examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.train.rows import plan_batching


@pytest.mark.parametrize(
    ("lengths", "batch", "micro", "processes", "expected"),
    [
        ([100] * 50, 800, 4096, 1, (8, 1)),  # eight examples of a hundred, in one pass
        ([100] * 50, 800, 400, 1, (4, 2)),  # four fit a pass
        ([50, 150] * 25, 800, 450, 1, (3, 3)),  # the longest decides what fits; 8 are spread over 3 passes
        ([100] * 50, 800, 4096, 2, (4, 1)),  # half of them a process
        ([1000] * 3, 10, 10, 1, (1, 1)),  # never less than one
        ([100] * 5, 10_000, 100_000, 1, (5, 1)),  # never more than there are
    ],
)
def test_sizes(lengths: list[int], batch: int, micro: int, processes: int, expected: tuple[int, int]) -> None:
    sizes = plan_batching(lengths, batch, micro, processes)
    assert (sizes.micro, sizes.accumulation) == expected
    assert sizes.examples_per_step == expected[0] * expected[1] * processes


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 4),
)
def test_a_pass_never_holds_more_than_fits(lengths: list[int], batch: int, micro: int, processes: int) -> None:
    sizes = plan_batching(lengths, batch, micro, processes)
    assert sizes.micro == 1 or sizes.micro * max(lengths) <= micro
    wanted = max(1, min(len(lengths), round(batch / (sum(lengths) / len(lengths)))))
    assert wanted <= sizes.examples_per_step < wanted + processes * (1 + sizes.accumulation)
