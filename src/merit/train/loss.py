"""The micro-batches of a branch as rows without padding, where the model can take them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.base.errors import InputError
from merit.compute.abilities import takes_packed_rows
from merit.compute.batches import one_row
from merit.compute.head import Task
from merit.compute.nll import logits_at
from merit.compute.packing import pack
from merit.data.example import Encoded

_TEXT_BATCH = {"input_ids", "labels", "attention_mask", "position_ids"}


def may_pack(model: Any, device: torch.device) -> bool:
    """Whether packed rows train `model` as examples alone would.

    With dropout they would not: a shared prefix runs once, and so would draw one mask for all.
    """
    config = model.config.get_text_config()
    drops = getattr(config, "attention_dropout", 0) or any(
        module.p for module in model.modules() if isinstance(module, nn.Dropout)
    )
    return not drops and takes_packed_rows(model, device)


@contextlib.contextmanager
def packed_batch(model: nn.Module, batch: dict[str, Tensor]) -> Iterator[Task | None]:
    """A batch made by `right_aligned` as one row without padding, in which what prompts have in common runs once.

    Forward and backward pass both belong inside: with checkpointing the backward pass runs layers again. None where
    the batch shows images or has no supervised token.
    """
    examples = _examples(batch) if batch.keys() <= _TEXT_BATCH else []
    rows = list(pack(examples, sys.maxsize))
    if not rows:
        yield None
        return
    with one_row(model, rows[0], batch["input_ids"].device) as task:
        yield task


def task_nll(model: nn.Module, task: Task) -> Tensor:
    """(M,) float32: −log p of the task's targets. Gradients flow if they are enabled."""
    return nn.functional.cross_entropy(logits_at(model, task.inputs, task.keep), task.targets, reduction="none")


def _examples(batch: dict[str, Tensor]) -> list[Encoded]:
    """The rows that `right_aligned` was given."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    ids, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
    return [Encoded(row[-n:], marks[-n:]) for n, row, marks in zip(lengths, ids, labels, strict=True)]


class PullCallback(TrainerCallback):
    """After each optimizer step θ ← θ − rate · pull · (θ − θ0), decoupled from the gradient as AdamW's decay is.

    Keeps a copy of θ0 in memory, taken before any checkpoint is loaded into the model.
    """

    def __init__(self, model: Any, pull: float) -> None:
        self.pull = pull
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        rates = {id(p): group["lr"] for group in kwargs["optimizer"].param_groups for p in group["params"]}
        for name, parameter in kwargs["model"].named_parameters():
            start = self._start.get(name.removeprefix("module."))
            if start is None or id(parameter) not in rates:
                continue
            if start.shape != parameter.shape:
                raise InputError("weights in shards cannot be pulled to θ0; leave it 0", field="train.pull")
            if start.device != parameter.device:
                start = self._start[name.removeprefix("module.")] = start.to(parameter.device)
            parameter.lerp_(start.to(parameter.dtype), min(1.0, rates[id(parameter)] * self.pull))
