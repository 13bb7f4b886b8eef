"""What a model's output head is given to project: for a loss on few positions, those alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def only_positions(model: Any, keep: Tensor, *, first_only: bool = False) -> Iterator[list[Tensor]]:
    """While open, the head of `model` sees only the positions in `keep`, as (1, M, width), or the first of them.

    `keep` (M,) int64 indexes the flattened positions of the batch. Yields a list that receives the hidden states of all
    kept positions, (M, width), when the head is called; it stays empty where the head is not a module.
    """
    kept: list[Tensor] = []

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        rows = hidden.flatten(0, 1)[keep.to(hidden.device)]
        kept.append(rows)
        return ((rows[:1] if first_only else rows).unsqueeze(0), *inputs[1:])

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield kept
        return
    handle = head.register_forward_pre_hook(choose)
    try:
        yield kept
    finally:
        handle.remove()
