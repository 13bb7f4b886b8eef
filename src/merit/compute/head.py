"""The loss at supervised positions only, the vocabulary's logits a chunk of positions at a time.

The model runs with its output head fed a single position; the hidden states of the supervised ones are taken aside.
Head, loss and their backward pass then run over chunks of these, so that no more than a few megabytes of logits ever
exist, and last the rest of the model runs backward once.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tail = Callable[[Tensor], Tensor]
LOGIT_BYTES = 16 * 2**20  # of one chunk's float32 logits
MIN_ROWS = 64


@dataclass(frozen=True)
class Task:
    """One forward pass. `inputs` are the model's; `keep` (M,) int64 indexes its flattened positions."""

    inputs: dict[str, Tensor]
    keep: Tensor
    targets: Tensor  # (M,) int64: the label that each kept position predicts
    tokens: int  # of the examples, as they were before trimming

    def to(self, device: torch.device) -> Task:
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Task(inputs, self.keep.to(device), self.targets.to(device), self.tokens)


def find_tail(model: Any, inputs: dict[str, Tensor]) -> Tail | None:
    """What the model does to the head's output before it calls it logits, tried out on `inputs`.

    One of nothing, soft-capping (Gemma 2), multiplying (Cohere) or dividing (Granite). None if it is something else, or
    the head is not a module: then the model itself must make all logits at once.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return None
    raw: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, _inputs, output: raw.append(output))
    try:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits.float()
    finally:
        handle.remove()
    if len(raw) != 1:
        return None
    tolerance = 1e-5 if model.dtype == torch.float32 else 1e-2  # bf16 rounds between the head and its tail
    tails = _tails(model.config.get_text_config())
    return next((tail for tail in tails if _same(tail(raw[0].float()), logits, tolerance)), None)


def _tails(config: Any) -> Iterator[Tail]:
    """What the configuration declares comes first: a cap leaves small logits nearly as they are."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield lambda x: torch.tanh(x / cap) * cap
    for factor in (getattr(config, "logit_scale", None), 1 / (getattr(config, "logits_scaling", None) or math.inf)):
        if factor:
            yield functools.partial(torch.mul, other=factor)
    yield lambda x: x


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def backward(model: Any, task: Task, tail: Tail | None, autocast: Callable[[], Any], *, weight: float = 1.0) -> Tensor:
    """Runs forward and backward of Σ −log p over the task's targets; returns that sum, float32, without gradient.

    Both are multiplied by `weight`: 0 lets a rank with nothing left to do take part in the others' communication.
    """
    count = len(task.targets)
    with only_positions(model, task.keep, first_only=tail is not None) as kept, autocast():
        logits = model(**task.inputs, use_cache=False).logits
    if not kept:  # the head was not called as a module
        logits = logits.flatten(0, 1)[task.keep.to(logits.device)].unsqueeze(0)
    if tail is None or not kept:
        loss, slope = _loss_and_slope(logits.reshape(count, -1), task.targets, weight)
        logits.backward(slope.view_as(logits))
        return loss
    hidden = kept[0]
    width = model.config.get_text_config().vocab_size
    rows = max(MIN_ROWS, LOGIT_BYTES // (4 * width))
    head = model.get_output_embeddings()
    losses, slopes = [], []
    for part, targets in zip(hidden.detach().split(rows), task.targets.split(rows), strict=True):
        leaf = part.requires_grad_(hidden.requires_grad)
        with autocast():
            logits = tail(head(leaf))
        loss, slope = _loss_and_slope(logits, targets, weight)
        if logits.requires_grad:
            logits.backward(slope)
        losses.append(loss)
        slopes.append(leaf.grad)
    if hidden.requires_grad:
        hidden.backward(torch.cat(slopes))
    return torch.stack(losses).sum()


def _loss_and_slope(logits: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Σ −log p of `targets` under (M, V) `logits`, and its derivative softmax − one-hot, in the logits' dtype."""
    work = logits.detach().float()
    targets = targets.to(work.device)[:, None]
    top = torch.logsumexp(work, dim=1, keepdim=True)
    loss = (top - work.gather(1, targets)).sum()
    slope = (work - top).exp_()
    slope.scatter_add_(1, targets, slope.new_full((1, 1), -1.0).expand_as(targets))
    if weight != 1.0:
        loss, slope = loss * weight, slope.mul_(weight)
    return loss, slope.to(logits.dtype)


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


def logits_at(model: nn.Module, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """(M, vocabulary) float32 logits at `keep` (M,), positions of the flattened batch. Only these are projected."""
    with only_positions(innermost(model), keep) as kept:
        logits: Tensor = model(**inputs, use_cache=False).logits.flatten(0, 1)
    if not kept:  # the head was not called as a module
        logits = logits[keep]
    return logits.float()


def innermost(model: nn.Module) -> nn.Module:
    """The model itself, behind wrappers of DDP and PEFT."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    if callable(base := getattr(model, "get_base_model", None)):
        model = base()
    return model
