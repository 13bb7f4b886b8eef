"""Greedy decoding on a CPU, where every token that is not needed costs time.

Prompts run as packed rows: without padding, and a prefix that they share runs once. Their keys and values then stand
right-aligned in one cache, whose rows write a token each at every step. A row that has ended leaves the cache, and the
next prompts join as soon as there is room. `generate` pads the prompts, runs a shared prefix for each of them, and
computes until the longest answer of a batch has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from merit.compute.abilities import close, short_windows, some_tokens, takes_packed_rows
from merit.compute.batches import packed_task, segmented
from merit.compute.head import only_positions
from merit.compute.packing import Packed, pack
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

_CACHED = 4  # tokens in the cache for each token of a packed row
_decodes: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Decoding:
    """How prompts are answered.

    Attributes:
        ends: tokens that end an answer.
        batch_tokens: tokens of a packed row of prompts; the cache holds four times as many, or one prompt.
        advance: told the number of prompts that are answered.
    """

    ends: Container[int]
    batch_tokens: int
    advance: Callable[[int], None] = lambda _: None


@dataclass
class _Rows:
    """Prompts that are being answered: B rows of a cache of W columns, right-aligned.

    Attributes:
        owners: the place of each among the prompts.
        tokens: (B, 1) int64, the newest token of each, which the cache does not hold.
        positions: (B, 1) int64, of these tokens.
        mask: (B, W) int64, 1 where the cache holds a token of the row.
        layers: keys and values of every layer, each (B, heads, at least W, width): what is right of W is still empty.
    """

    owners: list[int]
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    layers: list[tuple[Tensor, Tensor]]

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    def joined(self, other: _Rows, room: int) -> _Rows:
        """These rows and those of `other`, with empty columns for `room` tokens."""
        width = max(self.width, other.width)
        both = (self, other)

        def cached(*parts: Tensor) -> Tensor:
            first = parts[0]
            whole = first.new_zeros(sum(map(len, parts)), first.shape[1], width + room, first.shape[3])
            start = 0
            for part, rows in zip(parts, both, strict=True):
                whole[start : start + len(part), :, width - rows.width : width] = part[:, :, : rows.width]
                start += len(part)
            return whole

        return _Rows(
            [*self.owners, *other.owners],
            torch.cat([rows.tokens for rows in both]),
            torch.cat([rows.positions for rows in both]),
            torch.cat([functional.pad(rows.mask, (width - rows.width, 0)) for rows in both]),
            [(cached(k, a), cached(v, b)) for (k, v), (a, b) in zip(self.layers, other.layers, strict=True)],
        )

    def only(self, rows: Sequence[int]) -> _Rows:
        """Some of the rows, without columns that all of them leave empty at the left."""
        chosen = torch.tensor(rows)
        mask = self.mask[chosen]
        empty = int(mask.amax(dim=0).argmax())
        return _Rows(
            [self.owners[row] for row in rows],
            self.tokens[chosen],
            self.positions[chosen],
            mask[:, empty:],
            [(k[chosen, :, empty:], v[chosen, :, empty:]) for k, v in self.layers],
        )


class _Layer(DynamicLayer):
    """A layer of the cache that writes into room that it has, where `DynamicLayer` copies everything at every step."""

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._used = keys, values, used

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self._used = self._used, self._used + key_states.shape[2]
        for whole, new in ((self.keys, key_states), (self.values, value_states)):
            whole[:, :, start : self._used] = new
        return self.keys[:, :, : self._used], self.values[:, :, : self._used]

    def get_seq_length(self) -> int:
        return self._used


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Sequence[int]], room: Sequence[int], decoding: Decoding) -> list[list[int]]:
    """The most likely continuation of each prompt (token ids), token by token, up to an end token or `room` tokens."""
    answers: list[list[int]] = [[] for _ in prompts]
    asked = [index for index, tokens in enumerate(room) if tokens > 0]
    decoding.advance(len(prompts) - len(asked))
    longest = max(room, default=0)
    waiting = list(_packed(prompts, asked, longest, decoding.batch_tokens))[::-1]
    rows: _Rows | None = None

    def take(fresh: _Rows) -> _Rows | None:
        for owner, token in zip(fresh.owners, fresh.tokens.flatten().tolist(), strict=True):
            answers[owner].append(token)
        going = [
            row
            for row, owner in enumerate(fresh.owners)
            if answers[owner][-1] not in decoding.ends and len(answers[owner]) < room[owner]
        ]
        decoding.advance(len(fresh.owners) - len(going))
        if len(going) == len(fresh.owners):
            return fresh
        return fresh.only(going) if going else None

    while waiting or rows is not None:
        while waiting and (rows is None or _fits(rows, waiting[-1][1], longest, decoding.batch_tokens)):
            owners, row = waiting.pop()
            begun = take(replace(_begin(model, row, longest), owners=owners))
            rows = rows.joined(begun, longest) if rows is not None and begun is not None else rows or begun
        if rows is not None:
            rows = take(_step(model, rows))
    return answers


def decodes(model: Any) -> bool:
    """Whether `greedy` computes what the model does with each prompt alone, found by a trial."""
    if model not in _decodes:
        _decodes[model] = _tried(model)
    return _decodes[model]


@torch.no_grad()
def _tried(model: Any) -> bool:
    if model.device.type != "cpu" or images_of(model) is not None or not takes_packed_rows(model, model.device):
        return False
    ids = some_tokens(model, model.device)[0].tolist()
    prompts = [ids[:9], [*ids[:5], *ids[9:11]]]
    (row,) = pack([_asked(prompt) for prompt in prompts], len(ids) * 2)
    with short_windows(model):  # shorter than the prompts
        try:
            rows = _begin(model, row, 1)
            found = _forward(model, rows)
        except (ValueError, RuntimeError, IndexError, TypeError, AttributeError):  # its cache is of another kind
            return False
        texts = [[*prompts[owner], int(token)] for owner, token in zip(rows.owners, rows.tokens, strict=True)]
        alone = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].float() for text in texts]
    return close(found, torch.stack(alone), model.dtype)


def _packed(
    prompts: Sequence[Sequence[int]], chosen: Sequence[int], room: int, batch_tokens: int
) -> Iterator[tuple[list[int], Packed]]:
    """Packed rows of the prompts at the places `chosen`, each with these places and such that the cache holds it.

    In the cache a short prompt takes as much as the longest beside it, and each has its own copy of what they share.
    """
    for row in pack([_asked(prompts[place]) for place in chosen], batch_tokens):
        owners = [chosen[owner] for owner in row.owner.tolist()]
        if len(owners) == 1 or _fits(None, row, room, batch_tokens):
            yield owners, row
            continue
        owners.sort(key=lambda place: len(prompts[place]))
        half = len(owners) // 2
        for part in (owners[:half], owners[half:]):
            yield from _packed(prompts, part, room, batch_tokens)


def _fits(rows: _Rows | None, row: Packed, room: int, batch_tokens: int) -> bool:
    """Whether the cache holds a packed row beside the `rows` that are in it."""
    width, count = int(row.position_ids.max()) + 1, len(row.keep)
    if rows is not None:
        width, count = max(rows.width, width), count + len(rows.owners)
    return count * (width + room) <= _CACHED * batch_tokens


def _asked(prompt: Sequence[int]) -> Encoded:
    """A prompt whose next token is asked for; which one that is does not matter."""
    return Encoded([*prompt, 0], [IGNORED] * len(prompt) + [0])


def _begin(model: Any, row: Packed, room: int) -> _Rows:
    """Runs a packed row of prompts, and lines up their keys and values, with empty columns for `room` tokens."""
    task, cache = packed_task(row), DynamicCache()
    with segmented(model, row.segments, model.device), only_positions(model, row.keep) as kept:
        logits = model(**task.inputs, past_key_values=cache, use_cache=True).logits.flatten(0, 1)
    if not kept:  # the head was not called as a module
        logits = logits[row.keep]
    own = {segment.stop - 1: segment for segment in row.segments}  # each prompt's last token predicts its answer
    segments = [own[place] for place in row.keep.tolist()]
    lengths = torch.tensor([segment.shared + segment.stop - segment.start for segment in segments])
    width = int(lengths.max())
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    places = torch.zeros(len(segments), width, dtype=torch.int64)
    for line, segment, length in zip(places, segments, lengths.tolist(), strict=True):
        shared = range(segment.prefix, segment.prefix_stop)
        line[width - length :] = torch.tensor([*shared, *range(segment.start, segment.stop)])

    def lined_up(x: Tensor) -> Tensor:
        whole = x.new_zeros(len(segments), x.shape[1], width + room, x.shape[3])
        whole[:, :, :width] = x[0][:, places].transpose(0, 1) * mask[:, None, :, None].to(x.dtype)
        return whole

    return _Rows(
        row.owner.tolist(),
        logits.argmax(dim=-1, keepdim=True),
        lengths[:, None],
        mask,
        [(lined_up(layer.keys), lined_up(layer.values)) for layer in cache.layers],
    )


def _forward(model: Any, rows: _Rows) -> Tensor:
    """(B, vocabulary) float32: the logits after each row's newest token, which is in the cache now."""
    output = model(
        input_ids=rows.tokens,
        attention_mask=functional.pad(rows.mask, (0, 1), value=1),
        position_ids=rows.positions,
        past_key_values=Cache([_Layer(keys, values, rows.width) for keys, values in rows.layers]),
        use_cache=True,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


def _step(model: Any, rows: _Rows) -> _Rows:
    """One more token of every row."""
    return replace(
        rows,
        tokens=_forward(model, rows).argmax(dim=-1, keepdim=True),
        positions=rows.positions + 1,
        mask=functional.pad(rows.mask, (0, 1), value=1),
    )
