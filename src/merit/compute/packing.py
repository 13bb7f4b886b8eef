"""Packs examples into rows without padding, in which a prefix that examples share runs once.

A mean loss or gradient is linear in the examples, so nothing is lost by
- dropping the last supervised token, which is only predicted, and all tokens after it,
- running a prompt prefix that several examples share once, with all of them attending to it.
Both save work that an ordinary training step does. The result is exact for models whose tokens attend only to earlier
ones. Image tokens are never shared, because equal tokens may stand for different images.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merit.data.example import IGNORED, Encoded

MIN_SHARED = 4  # tokens; a shorter prefix is not worth another attention call


@dataclass(frozen=True)
class Segment:
    """One example's own tokens, `start:stop` of the row, which attend to the prefix `prefix:prefix_stop` as well."""

    start: int
    stop: int
    prefix: int = 0
    prefix_stop: int = 0

    @property
    def shared(self) -> int:
        """Tokens of the prefix."""
        return self.prefix_stop - self.prefix


@dataclass(frozen=True)
class Packed:
    """One row of whole examples. N tokens, M of them predict a supervised token."""

    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64: each example counts from 0, prefix included
    segments: tuple[Segment, ...]
    keep: Tensor  # (M,) int64: positions whose logits carry loss
    targets: Tensor  # (M,) int64: what they predict
    owner: Tensor  # (M,) int64 on the CPU: the example that each belongs to, by its place among those packed
    tokens: int  # of the original examples, for progress
    images: tuple[Sequence[bytes], ...] = ()  # of each example, in the order of their tokens


@dataclass(frozen=True)
class _Item:
    index: int  # among the examples
    ids: list[int]  # the tokens that are run
    targets: list[int]  # what each predicts
    quiet: int  # leading positions that predict nothing supervised, and show no image
    tokens: int
    images: Sequence[bytes]


def pack(
    examples: Sequence[Encoded], batch_tokens: int, *, share: bool = True, image_tokens: Container[int] = ()
) -> Iterator[Packed]:
    """Rows of at most `batch_tokens` tokens (a longer example makes a row of its own).

    `image_tokens` are those whose embedding is an image's.
    """
    items = [_trim(i, example, image_tokens) for i, example in enumerate(examples) if example.supervised]
    items.sort(key=lambda item: item.ids)
    row: list[tuple[int, list[_Item]]] = []
    used = 0
    for shared, group in _groups(items, share):
        fresh = True
        for item in group:
            own = len(item.ids) - shared
            cost = own + (shared if fresh else 0)
            if row and used + cost > batch_tokens:
                yield _row(row)
                row, used, fresh = [], 0, True
                cost = own + shared
            if fresh:
                row.append((shared, []))
                fresh = False
            row[-1][1].append(item)
            used += cost
    if row:
        yield _row(row)


def _trim(index: int, example: Encoded, image_tokens: Container[int]) -> _Item:
    labels = example.labels
    last = max(j for j in range(1, len(labels)) if labels[j] != IGNORED)
    if example.images and any(token in image_tokens for token in example.input_ids[last:]):
        last = len(labels)  # a trailing image is looked for in the text, so its tokens must be there
    targets = [*labels[1 : last + 1], IGNORED][:last]
    ids = example.input_ids[:last]
    quiet = next(j for j, target in enumerate(targets) if target != IGNORED)
    if example.images:
        quiet = next((j for j, token in enumerate(ids[:quiet]) if token in image_tokens), quiet)
    return _Item(index, ids, targets, quiet, len(example.input_ids), example.images)


def _groups(items: Sequence[_Item], share: bool) -> list[tuple[int, list[_Item]]]:
    """Cuts the sorted items into runs that share a prefix, so that the most tokens are saved.

    A run of n items with a common prefix of p tokens saves (n − 1) p. Dynamic programming over the positions of cuts.
    """
    if not share or len(items) < 2:
        return [(0, [item]) for item in items]
    count = len(items)
    # `quiet` positions predict nothing, so a prefix within them has the same (no) targets in every example.
    room = np.array([min(item.quiet, len(item.ids) - 1) for item in items])
    common = np.array([0, *(_common(a.ids, b.ids) for a, b in itertools.pairwise(items))])
    best = np.zeros(count + 1)
    cut = np.zeros(count + 1, dtype=np.int64)
    for stop in range(1, count + 1):
        # prefix[i]: what items i … stop−1 share
        prefix = np.minimum.accumulate(np.concatenate([common[1:stop], [np.iinfo(np.int64).max]])[::-1])[::-1]
        prefix = np.minimum(prefix, np.minimum.accumulate(room[:stop][::-1])[::-1])
        prefix[prefix < MIN_SHARED] = 0
        spared = best[:stop] + prefix * np.arange(stop - 1, -1, -1)
        cut[stop] = stop - 1 - int(np.argmax(spared[::-1]))  # the shortest run, if several save as much
        best[stop] = spared[cut[stop]]
    groups: list[tuple[int, list[_Item]]] = []
    stop = count
    while stop > 0:
        start = int(cut[stop])
        run = list(items[start:stop])
        shared = min(int(common[start + 1 : stop].min()), int(room[start:stop].min())) if len(run) > 1 else 0
        groups.append((shared if shared >= MIN_SHARED else 0, run))
        stop = start
    return groups[::-1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _row(groups: Sequence[tuple[int, list[_Item]]]) -> Packed:
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    segments: list[Segment] = []
    for shared, items in groups:
        prefix = len(ids)
        if shared and len(items) > 1:
            ids += items[0].ids[:shared]
            positions += range(shared)
            targets += [IGNORED] * shared
            owner += [items[0].index] * shared
            segments.append(Segment(prefix, prefix + shared))
        else:
            shared = 0  # the row ends within the run
        for item in items:
            start = len(ids)
            ids += item.ids[shared:]
            positions += range(shared, len(item.ids))
            targets += item.targets[shared:]
            owner += [item.index] * (len(item.ids) - shared)
            segments.append(Segment(start, len(ids), *((prefix, prefix + shared) if shared else (0, 0))))
    wanted = torch.tensor(targets)
    keep = torch.nonzero(wanted != IGNORED).reshape(-1)
    ran = [item for _, items in groups for item in items]
    return Packed(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        keep=keep,
        targets=wanted[keep],
        owner=torch.tensor(owner)[keep],
        tokens=sum(item.tokens for item in ran),
        images=tuple(item.images for item in ran),
    )
