"""Examples with a common prompt, as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence

from merit.data.example import IGNORED, Encoded

PROMPT = list(range(20, 32))  # that all of them begin with


def prompted(sizes: Sequence[tuple[int, int]]) -> list[Encoded]:
    """One example for each (tokens of its own prompt, tokens of its answer), of which the answer is supervised."""
    found = []
    for own, answer in sizes:
        ids = PROMPT + [40 + own + k for k in range(own + answer)]
        start = len(PROMPT) + own
        found.append(Encoded(ids, [IGNORED] * start + ids[start:]))
    return found
