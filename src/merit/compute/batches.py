"""The two half-sets, and padded batches for models that cannot take packed rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from merit.compute.attention import packed, packed_model
from merit.compute.head import Task
from merit.compute.nll import in_dtype, innermost
from merit.compute.packing import Packed
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

HALVES = 2


def split_half(examples: Sequence[Encoded], half: int) -> list[Encoded]:
    """Every second example: both halves see the whole of an ordered dataset."""
    return list(examples[half::HALVES])


def padded_tasks(examples: Sequence[Encoded], batch_tokens: int, model: Any = None) -> Iterator[Task]:
    """Batches of similar lengths, of at most `batch_tokens` tokens with padding (a longer example makes its own).

    A vision-language `model` gets its images' pixels beside the tokens.
    """
    ordered = sorted((e for e in examples if e.supervised), key=lambda example: len(example.input_ids))
    start = 0
    for stop in range(1, len(ordered) + 1):
        full = stop == len(ordered) or len(ordered[stop].input_ids) * (stop + 1 - start) > batch_tokens
        if full:
            task = _pad(ordered[start:stop])
            task.inputs.update(_pixels(model, task.inputs["input_ids"], [item.images for item in ordered[start:stop]]))
            yield task
            start = stop


def packed_task(row: Packed, model: Any = None) -> Task:
    """A packed row as the model takes it: no mask, since attention knows the row's segments."""
    inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids}
    inputs |= _pixels(model, row.input_ids, row.images)
    return Task(inputs, row.keep, row.targets, row.tokens)


@contextlib.contextmanager
def one_row(model: Any, row: Packed, device: torch.device) -> Iterator[Task]:
    """`row` of text as a task; inside, the model attends as the row's segments ask."""
    with packed_model(innermost(model)), packed(row.segments, device):
        yield packed_task(row).to(device)


def _pixels(model: Any, input_ids: Tensor, images: Sequence[Sequence[bytes]]) -> dict[str, Tensor]:
    """What a vision-language model takes for the images of each example."""
    vision = images_of(model)
    if vision is None:
        return {}
    return {name: in_dtype(value, model) for name, value in vision.inputs(input_ids, images).items()}


def _pad(examples: Sequence[Encoded]) -> Task:
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)  # the label that each position predicts
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        mask[row, :length] = 1
        targets[row, : length - 1] = torch.tensor(example.labels[1:])
    flat = targets.reshape(-1)
    keep = torch.nonzero(flat != IGNORED).reshape(-1)
    return Task({"input_ids": ids, "attention_mask": mask}, keep, flat[keep], int(mask.sum()))
