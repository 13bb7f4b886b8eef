"""Held-out loss, example by example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from merit.compute.abilities import takes_packed_rows
from merit.compute.batches import aligned_batch, counts_positions, length_batches, one_row
from merit.compute.head import innermost, logits_at
from merit.compute.packing import pack
from merit.data.example import IGNORED, Encoded
from merit.models.loading import Precision, autocast

# Asked once a model: its weights may change under it, which must not change how its losses are computed.
_packs: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_TEXT = ("input_ids", "attention_mask", "position_ids", "labels")


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


@dataclass(frozen=True)
class BatchNll:
    """Losses of one batch's supervised tokens, in nats, float32."""

    nll: Tensor  # (n,)
    row: Tensor  # (n,) int64 on the CPU: the batch's row each token belongs to


@dataclass(frozen=True)
class BatchLogits:
    """What the model says at one batch's supervised tokens."""

    logits: Tensor  # (n, vocabulary) float32
    targets: Tensor  # (n,) int64
    row: Tensor  # (n,) int64 on the CPU


def batch_nll(model: nn.Module, batch: dict[str, Tensor]) -> BatchNll:
    """Loss of every supervised token of a batch made by `right_aligned`. Gradients flow if they are enabled."""
    found = batch_logits(model, batch)
    nll = nn.functional.cross_entropy(found.logits, found.targets, reduction="none")
    return BatchNll(nll, found.row)


def batch_logits(model: nn.Module, batch: dict[str, Tensor]) -> BatchLogits:
    """Logits of every supervised token of a batch made by `right_aligned`.

    The head projects these alone: for short answers a few positions of a hundred, and the head is a third of a small
    model's work.
    """
    targets = torch.full_like(batch["labels"], IGNORED)
    targets[:, :-1] = batch["labels"][:, 1:]
    where = (targets != IGNORED).nonzero()
    keep = where[:, 0] * targets.shape[1] + where[:, 1]
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs |= {name: value for name, value in batch.items() if name not in _TEXT}
    if "position_ids" in _forward_arguments(model) and not counts_positions(model):
        inputs["position_ids"] = batch["position_ids"]
    return BatchLogits(logits_at(model, inputs, keep), targets.flatten()[keep], where[:, 0].cpu())


def supervised_nll(model: Any, rows: Sequence[Encoded]) -> BatchNll:
    """`batch_nll` of `rows`, on the model's device."""
    return batch_nll(model, {name: value.to(model.device) for name, value in aligned_batch(model, rows).items()})


def supervised_logits(model: Any, rows: Sequence[Encoded]) -> BatchLogits:
    """`batch_logits` of `rows`, on the model's device."""
    return batch_logits(model, {name: value.to(model.device) for name, value in aligned_batch(model, rows).items()})


def _forward_arguments(model: nn.Module) -> set[str]:
    """What the innermost model's forward accepts; wrappers accept anything."""
    return set(inspect.signature(type(innermost(model)).forward).parameters)
