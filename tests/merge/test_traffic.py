"""Bytes moved, against a simulation that counts every message."""

from __future__ import annotations

import pytest

from merit.merge.traffic import carried, data_parallel, moved


@pytest.mark.parametrize(("branches", "rounds"), [(2, 1), (4, 1), (4, 3), (8, 2)])
def test_rounds_move_every_checkpoint_up_and_every_merge_but_the_last_back(branches, rounds):
    total = 0
    for number in range(1, rounds + 1):
        for _ in range(branches):
            total += 100
            total += 100 if number < rounds else 0
    assert moved(branches, rounds, 100) == total


def test_one_branch_moves_nothing():
    assert moved(1, 1, 100) == 0
    assert data_parallel(1, 50, 100) == 0


def test_a_state_moves_between_two_rounds():
    assert [carried(3, rounds, 10) for rounds in (1, 2, 4)] == [0, 30, 90]


@pytest.mark.parametrize("machines", [2, 4, 5])
def test_a_ring_moves_each_chunk_twice_round(machines):
    """Scatter-reduce and all-gather: K − 1 turns each, in which every machine sends one of K chunks."""
    chunk, steps = 12, 3
    total = sum(chunk for _ in range(steps) for _ in range(2) for _ in range(machines - 1) for _ in range(machines))
    assert data_parallel(machines, steps, chunk * machines) == total
