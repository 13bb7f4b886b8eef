"""Attention over a packed row: every example attends to itself and to the prefix that it shares, and to nothing else.

Registered in transformers as the attention implementation `merit_packed`. A row's segments are brought into a few
rectangles of similar length, each of which is one call of the model's own sdpa, and back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from merit.gradients.packing import Segment
from merit.gradients.short_attention import ShortAttention, suits

NAME = "merit_packed"
_PLAIN = {"dropout", "scaling", "position_ids", "use_cache", "output_router_logits"}  # change no product here
FILL = 0.75  # segments at least this long, relative to the longest, share a rectangle


@dataclass(frozen=True)
class Rectangle:
    """`count` segments of up to `length` tokens that share one prefix (prefix == prefix_stop: none)."""

    count: int
    length: int
    prefix: int
    prefix_stop: int


@dataclass(frozen=True)
class Plan:
    """How a row of N tokens becomes R ≥ N rows of rectangles: `spread` (R,) row → token, `where` (N,) token → row."""

    rectangles: tuple[Rectangle, ...]
    spread: Tensor
    where: Tensor


def plan(segments: Sequence[Segment], device: torch.device) -> Plan:
    """Groups segments by prefix and length."""
    order = sorted(segments, key=lambda s: (s.prefix_stop, s.prefix, s.start - s.stop))
    rectangles: list[Rectangle] = []
    spread: list[int] = []
    start = 0
    for stop in range(1, len(order) + 1):
        first = order[start]
        length = first.stop - first.start
        if stop < len(order):
            new = order[stop]
            same_prefix = (new.prefix, new.prefix_stop) == (first.prefix, first.prefix_stop)
            if same_prefix and new.stop - new.start >= FILL * length:
                continue
        for segment in order[start:stop]:
            own = list(range(segment.start, segment.stop))
            spread += own + [segment.start] * (length - len(own))  # any token will do as padding
        rectangles.append(Rectangle(stop - start, length, first.prefix, first.prefix_stop))
        start = stop
    rows = torch.tensor(spread)
    first_row: dict[int, int] = {}
    for row, token in enumerate(spread):
        first_row.setdefault(token, row)
    where = torch.tensor([first_row[token] for token in sorted(first_row)])
    return Plan(tuple(rectangles), rows.to(device), where.to(device))


class _Spread(Function):
    """Rows of a packed tensor along dimension 2, each real one once; padding gets and gives no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spread: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        return x.index_select(2, spread)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(2, ctx.saved_tensors[0]), None, None


class _Gather(Function):
    """The way back: (R, …) → (N, …)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.rows = x.shape[0]
        return x.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g.new_zeros(ctx.rows, *g.shape[1:]).index_copy_(0, ctx.saved_tensors[0], g), None


_current: list[Plan] = []


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What transformers calls. Shapes: query (1, heads, N, width), key and value (1, key heads, N, width).

    Returns:
        (1, N, heads, width).
    """
    plan = _current[-1]
    if torch.is_autocast_enabled(query.device.type):  # as sdpa itself would, but before the copies
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = kwargs.pop("sliding_window", None)
    kwargs.pop("is_causal", None)
    spread = [_Spread.apply(x, plan.spread.to(x.device), plan.where.to(x.device)) for x in (query, key, value)]
    parts, row = [], 0
    for rectangle in plan.rectangles:
        size = rectangle.count * rectangle.length
        q, k, v = (
            x[0, :, row : row + size].unflatten(1, (rectangle.count, rectangle.length)).transpose(0, 1) for x in spread
        )
        row += size
        if rectangle.prefix_stop:
            before = slice(rectangle.prefix, rectangle.prefix_stop)
            k, v = (
                torch.cat([whole[:, :, before].expand(rectangle.count, -1, -1, -1), own], dim=2)
                for whole, own in ((key, k), (value, v))
            )
        mask = _mask(rectangle.length, k.shape[2], window, q.device)
        if suits(q, k) and kwargs.keys() <= _PLAIN and not kwargs.get("dropout"):
            scale = kwargs.get("scaling") or q.shape[-1] ** -0.5
            out = ShortAttention.apply(q, k, v, mask, scale).transpose(1, 2)
        else:
            out, _ = sdpa_attention_forward(module, q, k, v, mask, is_causal=True, **kwargs)
        parts.append(out.flatten(0, 1))
    gathered: Tensor = _Gather.apply(torch.cat(parts), plan.where.to(query.device))
    return gathered.unsqueeze(0), None


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """(1, 1, queries, keys) booleans, or None for plain causal attention. Queries are the last of the keys."""
    if queries == keys and (window is None or keys <= window):
        return None
    q = torch.arange(keys - queries, keys, device=device)[:, None]
    k = torch.arange(keys, device=device)[None, :]
    mask = k <= q
    if window is not None:
        mask &= k > q - window
    return mask[None, None]


@contextlib.contextmanager
def packed(segments: Sequence[Segment], device: torch.device) -> Iterator[None]:
    """Attention inside knows the row's segments. The model must use the implementation `NAME`."""
    _current.append(plan(segments, device))
    try:
        yield
    finally:
        _current.pop()


@contextlib.contextmanager
def packed_model(model: Any) -> Iterator[None]:
    """The model attends by `merit_packed` inside, and as before afterwards; a vision tower is left alone."""
    text = model.config.get_text_config()
    part = next((key for key in model.config.sub_configs if getattr(model.config, key) is text), None)
    before = text._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    model.set_attn_implementation(NAME if part is None else {part: NAME})
    try:
        yield
    finally:
        model.set_attn_implementation(before if part is None else {part: before})
