"""Bytes between machines while a mixture is trained: what merges move, and what data-parallel training moves."""

from __future__ import annotations

FLOAT32 = 4  # bytes of a weight of a branch, and of its gradient


def moved(branches: int, rounds: int, checkpoint_bytes: int) -> int:
    """Bytes that the branches of one training move. Each sends its weights at the end of every round, R times, and
    receives the merge that it goes on from, R − 1 times: K·(2R − 1) checkpoints. One branch has nothing to merge.

    θ0 and the data, which every method sends out once before the training, are not counted.

    Args:
        branches: K, each on a machine of its own.
        rounds: R; 1 is one merge, at the end.
        checkpoint_bytes: of one branch's weights.
    """
    return branches * (2 * rounds - 1) * checkpoint_bytes if branches > 1 else 0


def carried(branches: int, rounds: int, state_bytes: int) -> int:
    """Bytes of the branches' training states (weights and moments) where no machine keeps them, since all go through a
    store: each moves to the machine that trains the next round, R − 1 times.

    Args:
        branches: K.
        rounds: R.
        state_bytes: of one branch.
    """
    return branches * (rounds - 1) * state_bytes


def data_parallel(machines: int, steps: int, gradient_bytes: int) -> int:
    """Bytes that joint training moves on K data-parallel machines, all of them together: in every step, each sends
    2·(K − 1)/K of the gradients in a ring all-reduce (Patarasuk and Yuan, 2009).

    Args:
        machines: K.
        steps: optimizer steps.
        gradient_bytes: of one step's gradients.
    """
    return 2 * (machines - 1) * gradient_bytes * steps
