"""Weight decay toward θ0: the control that keeps joint training close, while it trains."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.errors import InputError


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
