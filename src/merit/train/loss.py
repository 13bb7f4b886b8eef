"""The micro-batches of a branch as rows without padding, where the model can take them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.base.errors import InputError
from merit.compute.abilities import takes_packed_rows
from merit.compute.attention import packed, packed_model
from merit.compute.head import Task
from merit.compute.nll import innermost, logits_at
from merit.compute.packing import Segment, pack
from merit.data.example import IGNORED, Encoded


def may_pack(model: Any, device: torch.device) -> bool:
    """Whether packed rows train `model` as examples alone would.

    With dropout they would not: a shared prefix runs once, and so would draw one mask for all.
    """
    config = model.config.get_text_config()
    drops = getattr(config, "attention_dropout", 0) or any(
        module.p for module in model.modules() if isinstance(module, nn.Dropout)
    )
    return not drops and takes_packed_rows(model, device)


def collate(rows: Sequence[Encoded]) -> dict[str, Tensor] | None:
    """A micro-batch of text as one row without padding, in which what prompts have in common runs once.

    Returns:
        input_ids, position_ids: (1, N) int64.
        segments: (S, 4) int64, the fields of each `Segment`.
        labels: (1, N + 1) int64; place i + 1 holds what position i predicts, or IGNORED. Trainers count these.
        examples: () int64, how many rows have a supervised token.
        None where no row has one.
    """
    row = next(pack(rows, sys.maxsize), None)
    if row is None:
        return None
    labels = torch.full((1, row.input_ids.shape[1] + 1), IGNORED)
    labels[0, row.keep + 1] = row.targets
    return {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "segments": torch.tensor([dataclasses.astuple(segment) for segment in row.segments]),
        "labels": labels,
        "examples": torch.tensor(sum(example.supervised > 0 for example in rows)),
    }


@contextlib.contextmanager
def packed_task(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[Task]:
    """A batch of `collate` as a task. Forward and backward pass both belong inside: with checkpointing the backward
    pass runs layers again."""
    ids = batch["input_ids"]
    targets = batch["labels"][0, 1:]
    keep = torch.nonzero(targets != IGNORED).reshape(-1)
    segments = [Segment(*numbers) for numbers in batch["segments"].tolist()]
    with packed_model(innermost(model)), packed(segments, ids.device):
        inputs = {"input_ids": ids, "position_ids": batch["position_ids"]}
        yield Task(inputs, keep, targets[keep], ids.shape[1])


def task_nll(model: nn.Module, task: Task) -> Tensor:
    """(M,) float32: −log p of the task's targets. Gradients flow if they are enabled."""
    return nn.functional.cross_entropy(logits_at(model, task.inputs, task.keep), task.targets, reduction="none")


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
