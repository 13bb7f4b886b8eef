"""Batches of examples as a model takes them: padded, or packed into rows whose attention knows its segments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from merit.compute.attention import packed, packed_model
from merit.compute.head import Task, innermost, task_of
from merit.compute.packing import Packed, Segment
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

HALVES = 2


def split_half(examples: Sequence[Encoded], half: int) -> list[Encoded]:
    """Every second example: both halves see the whole of an ordered dataset."""
    return list(examples[half::HALVES])


def length_batches(lengths: Sequence[int], batch_tokens: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `batch_tokens` tokens each with padding (always one row).

    Longest first: if memory does not suffice, it shows at once. With `equal` a batch has rows of one length, and so no
    padding: for models whose results padding changes.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = (len(batch) + 1) * lengths[batch[0]] > batch_tokens if batch else False
        if full or (equal and batch and lengths[index] != lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Encoded], model: Any = None, pad_token: int = 0) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels of `rows`, each (rows, longest) int64, padded at the right.

    A vision-language `model` gets its images' pixels beside the tokens.
    """
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_token, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.as_tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, 1:length] = torch.as_tensor(row.labels[1:])  # nothing predicts the first token
    pixels = _pixels(model, ids, [row.images for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **pixels}


def padded_tasks(
    examples: Sequence[Encoded], batch_tokens: int, model: Any = None, *, equal: bool = False
) -> Iterator[Task]:
    """The examples with a supervised token, in `length_batches`. `Task.owner` is the row of the batch."""
    supervised = [example for example in examples if example.supervised]
    for batch in length_batches([len(example.input_ids) for example in supervised], batch_tokens, equal=equal):
        rows = [supervised[index] for index in batch]
        yield task_of(padded(rows, model), tokens=sum(len(row.input_ids) for row in rows))


def packed_task(row: Packed, model: Any = None) -> Task:
    """A packed row as the model takes it: no mask, since attention knows the row's segments (`segmented`)."""
    inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids}
    inputs |= _pixels(model, row.input_ids, row.images)
    return Task(inputs, row.keep, row.targets, row.owner, row.tokens)


@contextlib.contextmanager
def segmented(model: Any, segments: Sequence[Segment], device: torch.device) -> Iterator[None]:
    """Inside, `model` attends as the segments of a packed row ask. The backward pass belongs inside, too: with
    checkpointing it runs layers again."""
    with packed_model(innermost(model)), packed(segments, device):
        yield


def in_dtype(value: Tensor, model: Any) -> Tensor:
    """Pixels in the weights' type, which convolutions insist on; whole numbers as they are."""
    return value.to(model.dtype) if value.is_floating_point() else value


def _pixels(model: Any, input_ids: Tensor, images: Sequence[Sequence[bytes]]) -> dict[str, Tensor]:
    """What a vision-language model takes for the images of each example."""
    vision = images_of(model)
    if vision is None:
        return {}
    return {name: in_dtype(value, model) for name, value in vision.inputs(input_ids, images).items()}
