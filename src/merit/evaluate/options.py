"""Multiple choice by likelihood: the option that a model finds most likely is its answer, as in lm-eval's `acc`.

A dataset is multiple choice if its rows have few different answers: letters, yes and no, "the correct answer is
answer2". These are the options of each of its examples, in the tokens of the rows, end of turn included. Exact match
asks more: that greedy decoding writes the answer. A model that has not learned the form has an exact match of 0,
whatever it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from merit.data.example import IGNORED, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from merit.models.loading import Precision

MOST = 8  # different answers
_ROWS = 2  # for each of them, at least: among fewer, free answers differ
Options = tuple[tuple[int, ...], ...]  # token ids of each


def options_of(rows: Iterable[Encoded]) -> Options:
    """The different answers of a dataset's rows, in order of their tokens; empty if it is not multiple choice."""
    found: set[tuple[int, ...]] = set()
    count = 0
    for row in rows:
        first, answer = _answer(row)
        found.add(answer)
        count += 1
        if row.images or not answer or tuple(row.input_ids[first : first + len(answer)]) != answer or len(found) > MOST:
            return ()
    return tuple(sorted(found)) if len(found) > 1 and count >= _ROWS * len(found) else ()


def score_options(
    model: PreTrainedModel,
    parts: Mapping[str, tuple[Sequence[Encoded], Options]],
    *,
    batch_tokens: int,
    precision: Precision,
) -> dict[str, list[float]]:
    """Name → for each example 1 if its own answer is the most likely of the options, else 0.

    Args:
        parts: name → examples of one dataset, and its options.
    """
    from merit.evaluate.measure import score_examples

    asked = {
        name: [_with(row, option) for row in rows for option in options] for name, (rows, options) in parts.items()
    }
    found = {}
    for score in score_examples(model, asked, batch_tokens=batch_tokens, precision=precision):
        rows, options = parts[score.name]
        totals = np.multiply(score.losses, score.tokens).reshape(len(rows), len(options))  # nats
        best = totals.argmin(axis=1)
        found[score.name] = [float(options[k] == _answer(row)[1]) for k, row in zip(best, rows, strict=True)]
    return found


def _answer(row: Encoded) -> tuple[int, tuple[int, ...]]:
    """The place of the first supervised token, and all supervised tokens."""
    first = next((place for place, label in enumerate(row.labels) if label != IGNORED), 0)
    return first, tuple(int(label) for label in row.labels if label != IGNORED)


def _with(row: Encoded, option: tuple[int, ...]) -> Encoded:
    """The example with another answer; what follows the answer, and so cannot change its likelihood, is left out."""
    first, _ = _answer(row)
    return Encoded([*row.input_ids[:first], *option], [*[IGNORED] * first, *option])
