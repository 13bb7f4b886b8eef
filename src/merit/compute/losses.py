"""Losses of supervised tokens, and of held-out examples, in nats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merit.compute.abilities import takes_packed_rows, takes_padding
from merit.compute.batches import length_batches, packed_task, padded, segmented
from merit.compute.head import Task, innermost, task_logits, task_nll, task_of
from merit.compute.packing import pack
from merit.data.example import Encoded
from merit.models.loading import Precision, autocast


@dataclass(frozen=True)
class BatchNll:
    """Losses of one batch's supervised tokens, in nats, float32."""

    nll: Tensor  # (n,)
    row: Tensor  # (n,) int64 on the CPU: the batch's row each token belongs to


def supervised_nll(model: Any, rows: Sequence[Encoded]) -> BatchNll:
    """The loss of every supervised token of `rows`, in one padded batch. Gradients flow if they are enabled.

    A model whose results padding changes runs a batch for every length.
    """
    tasks = _padded_tasks(model, rows)
    nll = torch.cat([task_nll(model, task) for task in tasks])
    return BatchNll(nll, torch.cat([task.owner for task in tasks]))


def supervised_logits(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """(n, vocabulary) float32: the logits at the supervised tokens of `rows`, run as `supervised_nll` does."""
    return torch.cat([task_logits(model, task) for task in _padded_tasks(model, rows)])


def example_losses(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
    packing: bool = True,
) -> tuple[list[float], list[int]]:
    """Mean loss (nats per supervised token) and number of supervised tokens of each example, in the order of `rows`.

    `advance` is called with the number of examples after each batch. On a CPU batches have no padding, and a prefix
    that prompts share runs once, if the model supports such rows; `packing=False` pads them in any case.
    """
    return example_scores(
        model, rows, batch_tokens=batch_tokens, precision=precision, advance=advance, packing=packing
    )[:2]


@torch.no_grad()
def example_scores(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
    packing: bool = True,
    share: tuple[int, int] = (0, 1),
) -> tuple[list[float], list[int], list[float]]:
    """As `example_losses`, and whether greedy decoding would give each example's reference answer (1 or 0).

    With `share` (k, n), only the batches k, k + n, … of all rows' batches run. The other examples have loss 0 and 0
    tokens, so losses and tokens of all n shares add up to what one call gives, to the bit.

    Greedy decoding writes the reference, including its end, exactly if every reference token is the most likely one
    after the tokens before it. So one pass is enough, and nothing is generated. A right answer in other words counts as
    wrong.
    """
    sums, misses, counts = torch.zeros((3, len(rows)), dtype=torch.float64)
    first, of = share
    for task in itertools.islice(_tasks(model, rows, batch_tokens, packing), first, None, of):
        with autocast(precision):
            logits = task_logits(model, task)
        nll = torch.nn.functional.cross_entropy(logits, task.targets, reduction="none").double().cpu()
        sums.index_add_(0, task.owner, nll)
        misses.index_add_(0, task.owner, (logits.argmax(dim=-1) != task.targets).double().cpu())
        counts.index_add_(0, task.owner, torch.ones_like(nll))
        advance(len(task.owner.unique()))
    if first == 0:
        advance(sum(not row.supervised for row in rows))
    losses = sums / counts.clamp(min=1)
    return losses.tolist(), counts.int().tolist(), (misses == 0).double().tolist()


def _tasks(model: PreTrainedModel, rows: Sequence[Encoded], batch_tokens: int, packing: bool) -> Iterator[Task]:
    """All rows with a supervised token; `owner` is the place in `rows`. Run each task before you take the next."""
    if packing and _may_pack(model, rows):
        for row in pack(rows, batch_tokens):
            with segmented(model, row.segments, model.device):
                yield packed_task(row).to(model.device)
        return
    for batch in length_batches([len(row.input_ids) for row in rows], batch_tokens):
        for task in _padded_tasks(model, [rows[index] for index in batch]):
            yield replace(task, owner=torch.tensor(batch)[task.owner])


def _padded_tasks(model: Any, rows: Sequence[Encoded]) -> list[Task]:
    """One task, or one for every length if padding changes what the model computes. `owner` is the place in `rows`."""
    lengths = [len(row.input_ids) for row in rows]
    if len(set(lengths)) < 2 or takes_padding(innermost(model), model.device):
        return [task_of(padded(rows, model)).to(model.device)]
    found = []
    for batch in length_batches(lengths, sum(lengths), equal=True):
        task = task_of(padded([rows[index] for index in batch], model)).to(model.device)
        found.append(replace(task, owner=torch.tensor(batch)[task.owner]))
    return found


def _may_pack(model: PreTrainedModel, rows: Sequence[Encoded]) -> bool:
    """Only on a CPU: a GPU recomputes a prefix faster than it calls attention once more."""
    if model.device.type != "cpu" or any(row.images for row in rows):
        return False
    return takes_packed_rows(model, model.device)
