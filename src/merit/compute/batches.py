"""The two half-sets, and padded batches for models that cannot take packed rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from merit.compute.attention import packed, packed_model
from merit.compute.head import Task, innermost
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


def right_aligned(rows: Sequence[Encoded], pad_token: int = 0) -> dict[str, Tensor]:
    """input_ids, labels, attention_mask, position_ids, each (rows, longest) int64, padded at the left."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_token, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        start = width - len(row.input_ids)
        ids[index, start:] = torch.as_tensor(row.input_ids)
        labels[index, start + 1 :] = torch.as_tensor(row.labels[1:])  # nothing predicts the first token
        mask[index, start:] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


def aligned_batch(model: Any, rows: Sequence[Encoded], pad_token: int = 0) -> dict[str, Tensor]:
    """`right_aligned`, and for a vision-language model what its forward pass takes for the rows' images."""
    batch = right_aligned(rows, pad_token)
    images = images_of(model)
    if images is not None:
        found = images.inputs(batch["input_ids"], [row.images for row in rows])
        batch |= {name: in_dtype(value, model) for name, value in found.items()}
    return batch


def in_dtype(value: Tensor, model: Any) -> Tensor:
    """Pixels in the weights' type, which convolutions insist on; whole numbers as they are."""
    return value.to(model.dtype) if value.is_floating_point() else value


def counts_positions(model: nn.Module) -> bool:
    """Whether positions are more than a count of tokens (Qwen-VL's have three parts), which the model must make."""
    whole = innermost(model)
    return hasattr(whole, "get_rope_index") or hasattr(getattr(whole, "model", None), "get_rope_index")


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `batch_tokens` tokens each with padding (always one row).

    Longest first: if memory does not suffice, it shows at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
