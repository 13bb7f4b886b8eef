"""SFTTrainer with our order of examples, a count of what it really trained on, and a head that is cheap on CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from merit.compute.head import Task
from merit.compute.nll import aligned_batch, batch_nll, innermost
from merit.data.example import IGNORED, Encoded
from merit.data.store import IMAGES
from merit.models.loading import images_of
from merit.train.checkpoints import Counters
from merit.train.loss import collate, may_pack, packed_task, task_nll
from merit.train.rows import Batching, StepSampler


class BranchTrainer(SFTTrainer):
    """What trains a branch.

    TRL's fused head scores supervised positions only where Triton runs; elsewhere it projects every position, in
    fp32, and again in the backward pass. On CPU the loss is therefore ours: the same sum over the same tokens, of rows
    without padding where the model takes them.
    """

    def __init__(
        self, *args: Any, lengths: Sequence[int], batching: Batching, counters: Counters, **kwargs: Any
    ) -> None:
        self._lengths = lengths
        self._batching = batching
        self._counters = counters
        super().__init__(*args, **kwargs)
        own = self.args.device.type == "cpu" and self.args.loss_type == "nll" and not self.args.label_smoothing_factor
        # TRL would process images itself, and refuses most of what is asked of it here: with images the loss is ours.
        vision = images_of(self.model) is not None
        self._own_loss = (own or vision) and not self.aux_loss_enabled
        packs = own and self._own_loss and not self.args.torch_compile
        self._packs = packs and may_pack(innermost(self.model), self.args.device)
        self._task: Task | None = None
        if self._own_loss:
            pad = self.processing_class.pad_token_id or 0
            self.data_collator = lambda rows: self._collate([_encoded(row) for row in rows], pad)

    def _collate(self, rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
        packed = collate(rows) if self._packs and not any(row.images for row in rows) else None
        return packed or aligned_batch(self.model, rows, pad)

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
        with packed_task(model, inputs) if packed else contextlib.nullcontext() as self._task:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._task = None
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self._own_loss or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        nll = batch_nll(model, inputs).nll if self._task is None else task_nll(model, self._task)
        total = num_items_in_batch if num_items_in_batch is not None else max(1, len(nll))
        # DDP averages gradients over processes; the total already counts the tokens of all.
        return nll.sum() / total * self.accelerator.num_processes


def _encoded(row: Any) -> Encoded:
    return Encoded(row["input_ids"], row["labels"], images=row.get(IMAGES) or ())
