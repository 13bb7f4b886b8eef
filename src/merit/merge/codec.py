"""Bytes of a checkpoint ↔ float64, exactly one rounding on the way back.

Rounding once matters: float64 → float32 → bfloat16, what most libraries do, rounds twice, and a value that the first
rounding puts exactly between two bfloat16 neighbours then goes to the even one whatever it was: 1 in 130,000 elements.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Bytes = NDArray[np.uint8]

_VIEWS: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
                                     "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U8": np.dtype("u1"),
                                     "BOOL": np.dtype("u1")}  # fmt: skip
# Significand bits (the hidden one counted), exponent of the smallest normal number.
_FORMS = {"F32": (24, -126), "BF16": (8, -126), "F16": (11, -14)}
_DOT = 8192  # numbers; OpenBLAS takes threads from 10,000 on


@dataclass(frozen=True)
class Scratch:
    """Working memory of the codec, for up to `elements` elements at a time."""

    raw: Bytes  # 8 bytes an element
    single: NDArray[np.float32]

    @classmethod
    def make(cls, elements: int) -> Scratch:
        return cls(np.empty(8 * elements, np.uint8), np.empty(elements, "<f4"))


def decode(raw: Bytes, dtype: str, out: Float64s, scratch: Scratch) -> None:
    """Fills `out` (n,) with the n elements that `raw` holds. Exact."""
    if dtype == "BF16":
        single = scratch.single[: out.size]
        np.left_shift(raw.view("<u2"), 16, out=single.view("<u4"), dtype=np.uint32)
        np.copyto(out, single)
    else:
        np.copyto(out, raw.view(_VIEWS[dtype]))


def encode(values: Float64s, dtype: str, out: Bytes, scratch: Scratch) -> None:
    """Fills `out` with `values` (n,) in type `dtype`, each rounded once to the nearest, ties to even."""
    if dtype in ("F64", "F32"):
        np.copyto(out.view(_VIEWS[dtype]), values, casting="same_kind")
        return
    if dtype not in _FORMS:  # whole numbers, the same in all inputs
        np.copyto(out.view(_VIEWS[dtype]), np.rint(values), casting="unsafe")
        return
    single = scratch.single[: values.size]
    _round_before_narrowing(values, single, dtype)
    if dtype == "F16":
        np.copyto(out.view(_VIEWS["F16"]), single, casting="same_kind")
        return
    bits = single.view("<u4")
    even = bits >> np.uint32(16)
    even &= np.uint32(1)
    even += np.uint32(0x7FFF)
    bits += even
    np.right_shift(bits, np.uint32(16), out=out.view("<u2"), casting="same_kind")


def dither(values: Float64s, dtype: str, seed: int, tensor: str, start: int) -> None:
    """Stochastic rounding, in place: each value goes to one of its two neighbours in `dtype`, the nearer more often,
    so that its expectation is the value itself.

    The randomness of an element depends on seed, tensor and position alone, never on how the work was cut.
    """
    if dtype not in _FORMS:
        return
    digits, smallest = _FORMS[dtype]
    _, exponents = np.frexp(values)
    steps = np.maximum(exponents - digits, smallest - digits + 1)
    scaled = np.ldexp(values, -steps)
    scaled += _uniform(seed, tensor, start, values.size)
    np.floor(scaled, out=scaled)
    np.ldexp(scaled, steps, out=values)


def sum_of_squares(values: Float64s) -> float:
    """Σ v² of `values` (n,) in float64. Each product of BLAS is too short for threads, which would fight with ours."""
    whole = values.size - values.size % _DOT
    rows, rest = values[:whole].reshape(-1, _DOT), values[whole:]
    return float(np.vecdot(rows, rows).sum() + np.dot(rest, rest))


def _round_before_narrowing(values: Float64s, single: NDArray[np.float32], dtype: str) -> None:
    """float64 → float32 such that rounding that once more, to `dtype`, gives what one rounding would have given.

    Only a float32 that lies exactly between two neighbours of `dtype` can mislead, and only where it is not exact:
    there it steps toward the true value, which is no tie (rounding to odd: Boldo and Melquiond, 2008).
    """
    np.copyto(single, values, casting="same_kind")
    bits = single.view("<u4")
    dropped = 16 if dtype == "BF16" else 13
    risky = bits & np.uint32((1 << dropped) - 1) == np.uint32(1 << (dropped - 1))
    if dtype == "F16":
        risky |= np.abs(single) < 2.0**-14  # where float16 has fewer bits, ties lie elsewhere
    at = np.flatnonzero(risky)
    if at.size == 0:
        return
    exact = values[at]
    at = at[(single[at] != exact) & (bits[at] & np.uint32(1) == 0)]
    grow = np.abs(values[at]) > np.abs(single[at])
    bits[at] += np.where(grow, np.uint32(1), np.uint32(0xFFFFFFFF))


def _uniform(seed: int, tensor: str, start: int, count: int) -> Float64s:
    key = int.from_bytes(hashlib.sha256(f"{seed} {tensor}".encode()).digest()[:16], "little")
    source = np.random.Philox(key=key)
    source.advance(start // 4)  # four numbers a step
    return np.random.Generator(source).random(start % 4 + count)[start % 4 :]
