"""The loss at supervised positions only, with the logits of a few positions at a time.

The model runs with its output head fed a single position, and a hook keeps the hidden states of the supervised ones.
Head, loss and their backward pass then run over chunks of these, so that only a few megabytes of logits exist at any
time. At the end the rest of the model runs backward once.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merit.data.example import IGNORED

Tail = Callable[[Tensor], Tensor]
LOGIT_BYTES = 16 * 2**20  # of one chunk's float32 logits
MIN_ROWS = 64
_OURS = ("labels", "segments", "examples")  # of a batch; the model does not take them


@dataclass(frozen=True)
class Task:
    """One forward pass.

    Attributes:
        inputs: what the model takes.
        keep: (M,) int64, the flattened positions that predict a supervised token.
        targets: (M,) int64, the label that each of them predicts.
        owner: (M,) int64 on the CPU, the example that each belongs to, by its place in the batch or among those packed.
        tokens: how many the examples had before they were trimmed.
    """

    inputs: dict[str, Tensor]
    keep: Tensor
    targets: Tensor
    owner: Tensor
    tokens: int = 0

    def to(self, device: torch.device) -> Task:
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Task(inputs, self.keep.to(device), self.targets.to(device), self.owner, self.tokens)


def task_of(batch: Mapping[str, Tensor], *, tokens: int = 0) -> Task:
    """A collated batch as a task: position i predicts `labels[:, i + 1]`. The model takes everything else in it."""
    ids, shifted = batch["input_ids"], batch["labels"][:, 1 : batch["input_ids"].shape[1] + 1]
    targets = torch.full_like(ids, IGNORED)
    targets[:, : shifted.shape[1]] = shifted
    where = (targets != IGNORED).nonzero()
    keep = where[:, 0] * targets.shape[1] + where[:, 1]
    inputs = {name: value for name, value in batch.items() if name not in _OURS}
    return Task(inputs, keep, targets.flatten()[keep], where[:, 0].cpu(), tokens)


def find_tail(model: Any, inputs: dict[str, Tensor]) -> Tail | None:
    """What the model does to the head's output to get its logits, tested on `inputs`.

    It is nothing, soft-capping (Gemma 2), multiplying (Cohere) or dividing (Granite). None if it is something else, or
    if the head is not a module: then the model itself must compute all logits at once.
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
    """The candidates. What the configuration declares comes first, because a cap hardly changes small logits."""
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

    Loss and gradient are multiplied by `weight`. With 0, a rank without examples takes part in the collectives of the
    others.
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
    """Inside, the head of `model` gets only the positions in `keep`, as (1, M, width), or the first of them.

    `keep` (M,) int64 indexes the flattened positions of the batch. Yields a list that receives the hidden states of all
    kept positions, (M, width), when the head is called. It stays empty if the head is not a module.
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


def task_output(model: nn.Module, task: Task, **options: Any) -> tuple[Tensor, Any]:
    """(M, vocabulary) float32, the logits of the task's positions, and all that the model returned.

    The head projects these alone: for short answers a few positions of a hundred, and the head is a third of a small
    model's work.
    """
    with only_positions(innermost(model), task.keep) as kept:
        output = model(**task.inputs, **options, use_cache=False)
    logits: Tensor = output.logits.flatten(0, 1)
    if not kept:  # the head was not called as a module
        logits = logits[task.keep]
    return logits.float(), output


def task_logits(model: nn.Module, task: Task) -> Tensor:
    """(M, vocabulary) float32: the logits of the task's positions. Gradients flow if they are enabled."""
    return task_output(model, task)[0]


def task_nll(model: nn.Module, task: Task) -> Tensor:
    """(M,) float32, nats: −log p of the task's targets. Gradients flow if they are enabled."""
    return nn.functional.cross_entropy(task_logits(model, task), task.targets, reduction="none")


def innermost(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP and PEFT."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    if callable(base := getattr(model, "get_base_model", None)):
        model = base()
    return model
