"""Multiple choice by likelihood, against a plain forward pass for every option."""

from __future__ import annotations

import pytest
import torch

from merit.data.example import IGNORED, Encoded
from merit.evaluate.options import MOST, options_of, score_options
from merit.models.loading import load_model

LETTERS = ((40, 2), (41, 2), (42, 43, 2))


def row(prompt: list[int], answer: tuple[int, ...], after: tuple[int, ...] = (9,)) -> Encoded:
    """A prompt, a supervised answer, and what the template writes after it."""
    labels = [IGNORED] * len(prompt) + list(answer) + [IGNORED] * len(after)
    return Encoded([*prompt, *answer, *after], labels)


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    prompts = torch.randint(10, 300, (12, 7)).tolist()
    return [row(prompt[: 4 + k % 4], LETTERS[k % 3]) for k, prompt in enumerate(prompts)]


def test_the_most_likely_option_is_chosen(rows, tiny_model):
    model = load_model(tiny_model).eval()
    options = options_of(rows)
    assert set(options) == set(LETTERS)
    parts = {"letters": (rows, options), "same": (rows[::2], options)}
    found = score_options(model, parts, batch_tokens=64, precision="fp32")
    expected = []
    for k, item in enumerate(rows):
        start = 4 + k % 4
        totals = {}
        for option in options:
            ids = [*item.input_ids[:start], *option]
            with torch.no_grad():
                likely = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            totals[option] = sum(float(likely[start - 1 + i, token]) for i, token in enumerate(option))
        expected.append(float(max(totals, key=totals.get) == LETTERS[k % 3]))
    assert found == {"letters": expected, "same": expected[::2]}
    assert 0 < sum(expected) < len(expected), "the comparison can fail"


def test_what_is_no_multiple_choice(rows):
    free = [row([11, 12], (50 + k, 2)) for k in range(4 * MOST)]
    assert options_of(free) == ()
    assert options_of(free[:4]) == (), "few rows, and all answers differ"
    assert options_of([row([11], LETTERS[0])] * 4) == (), "one answer is no choice"
    turns = Encoded([11, 40, 12, 41], [IGNORED, 40, IGNORED, 41])
    assert options_of([*rows, turns]) == (), "two turns are supervised"
    assert options_of([]) == ()
