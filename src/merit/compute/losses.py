"""Held-out loss, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from merit.compute.abilities import takes_packed_rows
from merit.compute.batches import one_row
from merit.compute.nll import BatchLogits, length_batches, logits_at, supervised_logits
from merit.compute.packing import pack
from merit.data.example import Encoded
from merit.models.loading import Precision, autocast

# Asked once a model: its weights may change under it, which must not change how its losses are computed.
_packs: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def example_losses(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
    packing: bool = True,
) -> tuple[list[float], list[int]]:
    """Mean loss (nats a supervised token) and number of supervised tokens of each example, in the order of `rows`.

    `advance` is called with the number of examples of each batch that is done. On a CPU batches have no padding, and
    what prompts have in common runs once, where the model can take such rows; `packing=False` pads them all the same.
    """
    losses, tokens, _ = example_scores(
        model, rows, batch_tokens=batch_tokens, precision=precision, advance=advance, packing=packing
    )
    return losses, tokens


@torch.no_grad()
def example_scores(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
    packing: bool = True,
) -> tuple[list[float], list[int], list[float]]:
    """As `example_losses`, and of each example whether greedy decoding would give the reference answer (1 or 0).

    Greedy decoding writes the reference, its end included, exactly when every reference token is the most likely one
    after those before it. So one pass tells it, and nothing has to be generated; an answer that is right in other
    words counts as wrong.
    """
    sums, misses, counts = torch.zeros((3, len(rows)), dtype=torch.float64)
    done = 0
    for found in _batches(model, rows, batch_tokens, precision, packing):
        nll = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="none").double().cpu()
        sums.index_add_(0, found.row, nll)
        misses.index_add_(0, found.row, (found.logits.argmax(dim=-1) != found.targets).double().cpu())
        counts.index_add_(0, found.row, torch.ones_like(nll))
        count = len(found.row.unique())
        done += count
        advance(count)
    advance(len(rows) - done)  # those without a supervised token
    losses = sums / counts.clamp(min=1)
    return losses.tolist(), counts.int().tolist(), (misses == 0).double().tolist()


def _batches(
    model: PreTrainedModel, rows: Sequence[Encoded], batch_tokens: int, precision: Precision, packing: bool
) -> Iterator[BatchLogits]:
    """Logits of all supervised tokens; `row` of each is the place in `rows`."""
    if packing and _may_pack(model, rows):
        for part in pack(rows, batch_tokens):
            with one_row(model, part, model.device) as task, autocast(precision):
                logits = logits_at(model, task.inputs, task.keep)
            yield BatchLogits(logits, task.targets, part.owner)
        return
    for batch in length_batches([len(row.input_ids) for row in rows], batch_tokens):
        with autocast(precision):
            found = supervised_logits(model, [rows[index] for index in batch])
        yield BatchLogits(found.logits, found.targets, torch.tensor(batch)[found.row])


def _may_pack(model: PreTrainedModel, rows: Sequence[Encoded]) -> bool:
    """A GPU computes a prefix again sooner than it calls attention once more."""
    if model.device.type != "cpu" or any(row.images for row in rows):
        return False
    if model not in _packs:
        _packs[model] = takes_packed_rows(model, model.device)
    return _packs[model]
