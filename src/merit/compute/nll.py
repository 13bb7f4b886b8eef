"""Negative log-likelihood of supervised tokens, without computing logits that carry no loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merit.compute.head import only_positions
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

_TEXT = ("input_ids", "attention_mask", "position_ids", "labels")


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


def right_aligned(rows: Sequence[Encoded], pad_token: int = 0) -> dict[str, Tensor]:
    """input_ids, labels, attention_mask, position_ids, each (rows, longest) int64, padded at the left."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_token, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        start = width - len(row.input_ids)
        ids[index, start:] = torch.as_tensor(row.input_ids)
        labels[index, start + 1 :] = torch.as_tensor(row.labels[1:])  # nothing predicts the first token
        mask[index, start:] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


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


def logits_at(model: nn.Module, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """(M, vocabulary) float32 logits at `keep` (M,), positions of the flattened batch. Only these are projected."""
    with only_positions(innermost(model), keep) as kept:
        logits: Tensor = model(**inputs, use_cache=False).logits.flatten(0, 1)
    if not kept:  # the head was not called as a module
        logits = logits[keep]
    return logits.float()


def supervised_nll(model: Any, rows: Sequence[Encoded]) -> BatchNll:
    """`batch_nll` of `rows`, on the model's device."""
    return batch_nll(model, {name: value.to(model.device) for name, value in aligned_batch(model, rows).items()})


def aligned_batch(model: Any, rows: Sequence[Encoded], pad_token: int = 0) -> dict[str, Tensor]:
    """`right_aligned`, and for a vision-language model what its forward pass takes for the rows' images."""
    batch = right_aligned(rows, pad_token)
    images = images_of(model)
    if images is not None:
        found = images.inputs(batch["input_ids"], [row.images for row in rows])
        batch |= {name: in_dtype(value, model) for name, value in found.items()}
    return batch


def in_dtype(value: Tensor, model: Any) -> Tensor:
    """Pixels in the weights' type, which convolutions insist on; whole numbers as they are."""
    return value.to(model.dtype) if value.is_floating_point() else value


def counts_positions(model: nn.Module) -> bool:
    """Whether positions are more than a count of tokens (Qwen-VL's have three parts), which the model must make."""
    whole = innermost(model)
    return hasattr(whole, "get_rope_index") or hasattr(getattr(whole, "model", None), "get_rope_index")


def supervised_logits(model: Any, rows: Sequence[Encoded]) -> BatchLogits:
    """`batch_logits` of `rows`, on the model's device."""
    return batch_logits(model, {name: value.to(model.device) for name, value in aligned_batch(model, rows).items()})


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `batch_tokens` tokens each with padding (always one row).

    Longest first: if memory does not suffice, it shows at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _forward_arguments(model: nn.Module) -> set[str]:
    """What the innermost model's forward accepts; wrappers accept anything."""
    return set(inspect.signature(type(innermost(model)).forward).parameters)


def innermost(model: nn.Module) -> nn.Module:
    """The model itself, behind wrappers of DDP and PEFT."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    if callable(base := getattr(model, "get_base_model", None)):
        model = base()
    return model
