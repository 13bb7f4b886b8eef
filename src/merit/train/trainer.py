"""SFTTrainer with merit's order of examples, a count of what it trained on, and on CPU rows without padding."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerState
from trl import SFTTrainer

from merit.base.errors import InputError
from merit.compute.abilities import takes_packed_rows
from merit.compute.batches import padded, segmented
from merit.compute.head import innermost, task_nll, task_of, task_output
from merit.compute.packing import Segment, pack
from merit.config.sections import Schedule, TrainConfig
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
        self,
        *args: Any,
        recipe: TrainConfig,
        lengths: Sequence[int],
        batching: Batching,
        counters: Counters,
        **kwargs: Any,
    ) -> None:
        self._recipe = recipe
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

    def take(self, checkpoint: Path) -> None:
        """Takes weights and state from a training checkpoint, without training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def _collate(self, rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
        packed = collate(rows) if self._packs and not any(row.images for row in rows) else None
        return packed or padded(rows, self.model, pad)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return StepSampler(self._lengths, self._batching, self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        scheduler: LRScheduler | None = getattr(self, "lr_scheduler", None)
        if scheduler is None:
            schedule, warmup = self._recipe.schedule, self._recipe.warmup_ratio
            scheduler = self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                # After the last step the scheduler asks for one more rate.
                lambda step: mean_rate(schedule, warmup, min(step, num_training_steps - 1), num_training_steps),
            )
            self._created_lr_scheduler = True
        return scheduler

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


def mean_rate(schedule: Schedule, warmup: float, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the peak: the mean of the schedule over this step's part of the run.

    So warm-up takes the same share of a long and of a short run, all runs have the same mean rate, and no step has the
    rate zero. transformers reads the schedule where a step begins: its first step does nothing, and warm-up is a whole
    number of steps, none in a short run.

    Args:
        warmup: share of the run in which the rate rises; `constant` has no warm-up.
        step: 0-based.
    """
    if schedule == "constant":
        return 1.0
    return steps * (_area(schedule, warmup, (step + 1) / steps) - _area(schedule, warmup, step / steps))


def _area(schedule: Schedule, warmup: float, x: float) -> float:
    """The integral of the schedule from the start of the run to its share `x`."""
    if x <= warmup:
        return x * x / (2 * warmup) if warmup else 0.0
    u = (x - warmup) / (1 - warmup)  # the share of what follows the warm-up
    areas = {
        "constant_with_warmup": u,
        "linear": u - u * u / 2,
        "cosine": (u + math.sin(math.pi * u) / math.pi) / 2,
    }
    return warmup / 2 + (1 - warmup) * areas[schedule]


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
