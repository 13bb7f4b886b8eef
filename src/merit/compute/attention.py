"""Attention over a packed row: every example attends to itself and to the prefix that it shares, and to nothing else.

It is registered in transformers as the attention implementation `merit_packed`. It copies a row's segments into a few
rectangles of similar length, calls the model's own sdpa once for each, and copies the results back. A GPU spends more
time on calls than on computing, so there a row without shared prefixes is one call of `varlen_attn`, where that fits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from merit.compute.packing import Segment

NAME = "merit_packed"
_PLAIN = {"dropout", "scaling", "position_ids", "use_cache", "output_router_logits"}  # options that change no product
FILL = 0.75  # segments at least this long, relative to the longest, share a rectangle


class NotPackable(RuntimeError):
    """A layer asks for more than causal attention within a window."""


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
    """Selects rows of a packed tensor along dimension 2, each real one once; padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spread: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        return x.index_select(2, spread)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(2, ctx.saved_tensors[0]), None, None


class _Gather(Function):
    """The inverse of `_Spread`: (R, …) → (N, …)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.rows = x.shape[0]
        return x.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g.new_zeros(ctx.rows, *g.shape[1:]).index_copy_(0, ctx.saved_tensors[0], g), None


@dataclass
class _Row:
    """What attention knows about the current row; computed when first needed, once for all layers."""

    segments: Sequence[Segment]
    device: torch.device
    bounds: dict[torch.device, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def plan(self) -> Plan:
        return plan(self.segments, self.device)

    @functools.cached_property
    def longest(self) -> int:
        return max(segment.stop - segment.start for segment in self.segments)

    @functools.cached_property
    def shares(self) -> bool:
        return any(segment.shared for segment in self.segments)

    def bounds_on(self, device: torch.device) -> Tensor:
        """(segments + 1,) int32: where each segment starts, and the end of the last."""
        if device not in self.bounds:
            starts = [segment.start for segment in self.segments]
            self.bounds[device] = torch.tensor([*starts, self.segments[-1].stop], dtype=torch.int32, device=device)
        return self.bounds[device]


_current: list[_Row] = []


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The function that transformers calls. query: (1, heads, N, width); key, value: (1, key heads, N, width).

    Returns:
        (1, N, heads, width).

    Raises:
        NotPackable: the layer makes a mask of its own, which knows nothing of the row's segments.
    """
    if attention_mask is not None:
        raise NotPackable
    row = _current[-1]
    if torch.is_autocast_enabled(query.device.type):  # sdpa would do it, too, but after the copies
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = kwargs.pop("sliding_window", None)
    kwargs.pop("is_causal", None)
    plain = kwargs.keys() <= _PLAIN and not kwargs.get("dropout")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if plain and not row.shares and suits_varlen(query):
        return _varlen(row, query, key, value, window, scale), None
    call = _Call(module, window, scale if plain else None, kwargs)
    return _rectangles(row.plan, call, query, key, value), None


@dataclass(frozen=True)
class _Call:
    """A layer's call of attention; `scale` is None if `options` ask for more than softmax(q kᵀ · scale) v."""

    module: Any
    window: int | None
    scale: float | None
    options: dict[str, Any]


def _rectangles(plan: Plan, call: _Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
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
        mask = _mask(rectangle.length, k.shape[2], call.window, q.device)
        if call.scale is not None and suits(q, k):
            out = ShortAttention.apply(q, k, v, mask, call.scale).transpose(1, 2)
        else:
            out, _ = sdpa_attention_forward(call.module, q, k, v, mask, is_causal=True, **call.options)
        parts.append(out.flatten(0, 1))
    gathered: Tensor = _Gather.apply(torch.cat(parts), plan.where.to(query.device))
    return gathered.unsqueeze(0)


def suits_varlen(query: Tensor) -> bool:
    """Whether torch's flash kernel supports it: a recent NVIDIA GPU, 16 bits, heads of up to 256."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and _varlen_arguments() is not None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@functools.cache
def _varlen_arguments() -> frozenset[str] | None:
    """The arguments of this torch's `varlen_attn`; None if there is no `varlen_attn`, or it supports no window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = frozenset(inspect.signature(varlen_attn).parameters)
    return names if {"window_size", "scale"} <= names else None


def _varlen(row: _Row, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, width)
    more: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in (_varlen_arguments() or ()):
            more["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    bounds, longest = row.bounds_on(q.device), row.longest
    before = -1 if window is None or window > longest else window - 1  # −1 is all
    # A tensor: it returns the log-sum-exp, too, only on request.
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(before, 0), **more)
    found: Tensor = out.unsqueeze(0)
    return found


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
    """Inside, attention knows the row's segments. The model must use the implementation `NAME`."""
    _current.append(_Row(segments, device))
    try:
        yield
    finally:
        _current.pop()


@contextlib.contextmanager
def packed_model(model: Any) -> Iterator[None]:
    """Inside, the language model uses `merit_packed`; a vision tower keeps its own attention."""
    text = model.config.get_text_config()
    part = next((key for key in model.config.sub_configs if getattr(model.config, key) is text), None)
    before = text._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    model.set_attn_implementation(NAME if part is None else {part: NAME})
    try:
        yield
    finally:
        model.set_attn_implementation(before if part is None else {part: before})


LONGEST = 256 * 256  # queries × keys


def suits(query: Tensor, key: Tensor) -> bool:
    """Whether `ShortAttention` is faster than torch's attention."""
    cpu_bf16 = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return cpu_bf16 and torch.is_grad_enabled() and query.shape[2] * key.shape[2] <= LONGEST


class ShortAttention(Function):
    """softmax(q kᵀ · scale + mask) v. The backward pass recomputes the probabilities, one sequence at a time.

    Args of `apply`:
        query: (sequences, heads, queries, width).
        key, value: (sequences, key heads, keys, width); heads is a multiple of key heads.
        mask: (1, 1, queries, keys) booleans, or None for causal attention.
        scale: of the products.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        out = functional.scaled_dot_product_attention(query, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        ctx.save_for_backward(query, key, value, out)
        ctx.mask, ctx.scale = mask, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout,) = grads
        query, key, value, out = ctx.saved_tensors
        count, heads, queries, width = query.shape
        _, groups, keys, _ = key.shape
        rows = heads // groups * queries  # queries of all heads that share a key head, one after another
        allowed = torch.ones(queries, keys, dtype=torch.bool).tril_() if ctx.mask is None else ctx.mask[0, 0]
        bias = torch.zeros(queries, keys).masked_fill_(~allowed, float("-inf"))
        delta = (dout.float() * out.float()).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for i in range(count):
            q, g = query[i].reshape(groups, rows, width), dout[i].reshape(groups, rows, -1)
            scores = torch.bmm(q, key[i].transpose(1, 2)).float().view(groups, -1, queries, keys)
            p = scores.mul_(ctx.scale).add_(bias).softmax(-1)
            dv[i] = torch.bmm(p.to(g.dtype).view(groups, rows, keys).transpose(1, 2), g)
            dp = torch.bmm(g, value[i].transpose(1, 2)).float().view_as(p)
            ds = dp.sub_(delta[i].view(groups, -1, queries, 1)).mul_(p).mul_(ctx.scale)
            ds = ds.to(q.dtype).view(groups, rows, keys)
            dq[i] = torch.bmm(ds, key[i]).view(heads, queries, width)
            dk[i] = torch.bmm(ds.transpose(1, 2), q)
        return dq, dk, dv, None, None
