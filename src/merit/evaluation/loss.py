"""Held-out loss, example by example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from merit.models.loading import Precision, autocast
from merit.models.nll import TokenRow, length_batches, supervised_logits, supervised_nll


@torch.no_grad()
def example_losses(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[float], list[int]]:
    """Mean loss (nats a supervised token) and number of supervised tokens of each example, in the order of `rows`.

    `advance` is called with the number of examples of each batch that is done.
    """
    losses = [0.0] * len(rows)
    tokens = [0] * len(rows)
    for batch in length_batches([len(ids) for ids, _ in rows], batch_tokens):
        with autocast(precision):
            result = supervised_nll(model, [rows[index] for index in batch])
        sums = torch.zeros(len(batch), dtype=torch.float64)
        sums.index_add_(0, result.row, result.nll.double().cpu())
        counts = torch.bincount(result.row, minlength=len(batch))
        for position, index in enumerate(batch):
            tokens[index] = int(counts[position])
            losses[index] = float(sums[position]) / max(1, tokens[index])
        advance(len(batch))
    return losses, tokens


@torch.no_grad()
def example_scores(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    *,
    batch_tokens: int,
    precision: Precision,
) -> tuple[list[float], list[int], list[float]]:
    """As `example_losses`, and of each example whether greedy decoding would give the reference answer (1 or 0).

    Greedy decoding writes the reference, its end included, exactly when every reference token is the most likely one
    after those before it. So one pass tells it, and nothing has to be generated; an answer that is right in other
    words counts as wrong.
    """
    losses, tokens, exact = [0.0] * len(rows), [0] * len(rows), [0.0] * len(rows)
    for batch in length_batches([len(ids) for ids, _ in rows], batch_tokens):
        with autocast(precision):
            found = supervised_logits(model, [rows[index] for index in batch])
        nll = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="none").double().cpu()
        missed = (found.logits.argmax(dim=-1) != found.targets).double().cpu()
        sums, misses = torch.zeros((2, len(batch)), dtype=torch.float64)
        sums.index_add_(0, found.row, nll)
        misses.index_add_(0, found.row, missed)
        counts = torch.bincount(found.row, minlength=len(batch))
        for position, index in enumerate(batch):
            tokens[index] = int(counts[position])
            losses[index] = float(sums[position]) / max(1, tokens[index])
            exact[index] = float(misses[position] == 0)
    return losses, tokens, exact
