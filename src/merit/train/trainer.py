"""SFTTrainer with merit's order of examples, a count of what it trained on, and on CPU rows without padding."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from merit.base.errors import InputError
from merit.compute.abilities import takes_packed_rows
from merit.compute.batches import padded, segmented
from merit.compute.head import innermost, task_nll, task_of, task_output
from merit.compute.packing import Segment, pack
from merit.data.example import IGNORED, Encoded
from merit.data.store import IMAGES
from merit.models.loading import images_of
from merit.train.checkpoints import Counters
from merit.train.rows import Batching, StepSampler

_NOISE = ("attention_dropout", "router_jitter_noise", "input_jitter_noise")  # in a model's configuration


class BranchTrainer(SFTTrainer):
    """Trains a branch.

    TRL's fused head computes supervised positions alone only where Triton runs. Elsewhere it projects every position,
    in fp32, and again in the backward pass. So on CPU merit computes the loss: the same sum over the same tokens, of
    rows without padding if the model takes them.

    The loss that balances experts is the model's own. TRL computes it only for models that count their experts under
    the names that it knows.
    """

    def __init__(
        self, *args: Any, lengths: Sequence[int], batching: Batching, counters: Counters, **kwargs: Any
    ) -> None:
        self._lengths = lengths
        self._batching = batching
        self._counters = counters
        super().__init__(*args, **kwargs)
        own = self.args.device.type == "cpu" and self.args.loss_type == "nll" and not self.args.label_smoothing_factor
        # TRL would process images itself, and refuses most of these settings: with images merit computes the loss.
        vision = images_of(self.model) is not None
        config: Any = innermost(self.model).config
        strange_experts = self.aux_loss_enabled and not _trl_knows_experts(config.get_text_config())
        if strange_experts and (self.args.loss_type != "nll" or self.args.label_smoothing_factor):
            raise InputError(
                f"TRL cannot balance the experts of `{config.model_type}`; set it to 0, or leave "
                "out `loss_type` and `label_smoothing_factor`",
                field="train.trl.router_aux_loss_coef",
            )
        self._own_loss = own or vision or strange_experts
        # A prefix that prompts share would count once in the balance of experts.
        packs = own and not self.aux_loss_enabled and not self.args.torch_compile
        self._packs = packs and may_pack(innermost(self.model), self.args.device)
        if self._own_loss:
            pad = self.processing_class.pad_token_id or 0
            self.data_collator = lambda rows: self._collate([_encoded(row) for row in rows], pad)

    def _collate(self, rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
        packed = collate(rows) if self._packs and not any(row.images for row in rows) else None
        return packed or padded(rows, self.model, pad)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        batching = self._batching
        together = batching.micro * batching.processes if batching.processes > 1 else 1
        return StepSampler(self._lengths, batching.examples_per_step, self.args.seed, multiple=together)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        supervised = inputs["labels"][:, 1:] != IGNORED
        packed = "segments" in inputs
        counts = torch.stack([supervised.sum(), inputs["examples"] if packed else supervised.any(dim=1).sum()])
        tokens, examples = self.accelerator.reduce(counts, "sum").tolist()
        self._counters.supervised_tokens += tokens
        self._counters.examples += examples
        with attending(model, inputs):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self._own_loss or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task = task_of(inputs)
        if not self.aux_loss_enabled:
            return self._mean(task_nll(model, task), num_items_in_batch)
        logits, output = task_output(model, task, output_router_logits=True)
        loss = self._mean(nn.functional.cross_entropy(logits, task.targets, reduction="none"), num_items_in_batch)
        balance = getattr(output, "aux_loss", None)  # of a micro-batch: its share of the step is as large as others'
        if balance is None:
            return loss
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return loss + self.router_aux_loss_coef * balance / steps

    def _mean(self, nll: Tensor, tokens: Any) -> Tensor:
        """This micro-batch's part of the mean over all `tokens` of the step."""
        total = tokens if tokens is not None else max(1, len(nll))
        # DDP averages gradients over processes, and the total already counts the tokens of all.
        mean: Tensor = nll.sum() / total * self.accelerator.num_processes
        return mean


def _trl_knows_experts(config: Any) -> bool:
    return hasattr(config, "num_experts") and hasattr(config, "num_experts_per_tok")


def _encoded(row: Any) -> Encoded:
    return Encoded(row["input_ids"], row["labels"], images=row.get(IMAGES) or ())


def may_pack(model: Any, device: torch.device) -> bool:
    """Whether packed rows train `model` as separate examples would.

    With dropout or a router's noise they would not: a shared prefix runs once, and would draw one mask for all its
    examples.
    """
    config = model.config.get_text_config()
    drops = any(getattr(config, name, 0) for name in _NOISE) or any(
        module.p for module in model.modules() if isinstance(module, nn.Dropout)
    )
    return not drops and takes_packed_rows(model, device)


def collate(rows: Sequence[Encoded]) -> dict[str, Tensor] | None:
    """A micro-batch of text as one row without padding, in which a prefix that prompts share runs once.

    Returns:
        input_ids, position_ids: (1, N) int64.
        segments: (S, 4) int64, the fields of each `Segment`.
        labels: (1, N + 1) int64; position i predicts `labels[0, i + 1]`, or IGNORED. The Trainer counts these.
        examples: () int64, how many rows have a supervised token.
        None if no row has one.
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


def attending(model: nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Inside, `model` attends within the segments of a batch of `collate`; for another batch nothing changes."""
    if "segments" not in batch:
        return contextlib.nullcontext()
    return segmented(model, [Segment(*numbers) for numbers in batch["segments"].tolist()], batch["input_ids"].device)
