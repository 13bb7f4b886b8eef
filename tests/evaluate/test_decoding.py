"""Greedy decoding in packed rows and one cache: what the model writes after each prompt alone, whatever runs beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from gradients.tiny_models import tiny
from merit.compute import decoding
from merit.compute.decoding import Decoding, decodes, greedy
from merit.evaluate import answers
from merit.evaluate.answers import greedy_answers
from merit.models.loading import load_model
from prompted import PROMPT

# Of unlike length; three begin alike, two are the same.
PROMPTS = [[*PROMPT, 50, 51, 52], [60], [*PROMPT, 53], list(range(70, 110)), [*PROMPT, 53], [61, 62], [*PROMPT, 54, 90]]


@pytest.fixture(scope="module")
def model(tiny_model: Path):
    return load_model(tiny_model).eval()


def alone(model, prompt: list[int], room: int, ends=()) -> list[int]:
    """Token by token, with nothing kept from one to the next."""
    answer: list[int] = []
    while len(answer) < room and (not answer or answer[-1] not in ends):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("batch_tokens", [1, 20, 40, 10_000])
def test_answers_are_those_of_prompts_alone(model, batch_tokens: int) -> None:
    wanted = [alone(model, prompt, 12) for prompt in PROMPTS]
    assert greedy(model, PROMPTS, [12] * len(PROMPTS), Decoding((), batch_tokens)) == wanted


@pytest.mark.parametrize("batch_tokens", [20, 10_000])
def test_rows_end_at_their_own_time(model, batch_tokens: int) -> None:
    room = [12, 3, 12, 0, 1, 12, 7]
    whole = [alone(model, prompt, 12) for prompt in PROMPTS]
    ends = {whole[0][4], whole[5][2]}
    done: list[int] = []
    found = greedy(model, PROMPTS, room, Decoding(ends, batch_tokens, done.append))
    assert found == [alone(model, prompt, tokens, ends) for prompt, tokens in zip(PROMPTS, room, strict=True)]
    assert len({len(answer) for answer in found}) > 3
    assert sum(done) == len(PROMPTS)


def test_what_has_ended_and_what_is_shared_runs_no_more(model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    prompts: list[int] = []
    step, begin = decoding._forward, decoding._begin
    monkeypatch.setattr(decoding, "_forward", lambda m, rows: steps.append(len(rows.owners)) or step(m, rows))
    monkeypatch.setattr(
        decoding, "_begin", lambda m, row, room: prompts.append(row.input_ids.numel()) or begin(m, row, room)
    )
    greedy(model, PROMPTS, [5, 1, 2, 1, 1, 3, 1], Decoding((), 10_000))
    assert steps == [3, 2, 1, 1]
    assert sum(prompts) < sum(map(len, PROMPTS)) - 2 * len(PROMPT)


def test_the_next_prompts_join_when_there_is_room(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is a packed row of its own, and the cache holds two or three of them."""
    steps: list[int] = []
    step = decoding._forward
    monkeypatch.setattr(decoding, "_forward", lambda m, rows: steps.append(len(rows.owners)) or step(m, rows))
    prompts = [[20 + k, *range(50, 57)] for k in range(5)]
    wanted = [alone(model, prompt, room) for prompt, room in zip(prompts, (6, 2, 6, 4, 3), strict=True)]
    assert greedy(model, prompts, [6, 2, 6, 4, 3], Decoding((), 8)) == wanted
    assert len(steps) < sum(len(answer) - 1 for answer in wanted)
    assert max(steps) <= 2


@pytest.mark.parametrize("prompts", [
    [[*range(20, 60), 60 + k] for k in range(12)],  # what they share runs once, but each keeps a copy of it
    [[20 + k, 61] for k in range(30)] + [list(range(60, 110))],  # each takes as much as the longest
])  # fmt: skip
def test_the_cache_is_bounded(model, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]) -> None:
    held: list[int] = []
    forward = decoding._forward

    def watched(model, rows):
        held.append(rows.layers[0][0][:, 0, :, 0].numel())
        return forward(model, rows)

    monkeypatch.setattr(decoding, "_forward", watched)
    wanted = [alone(model, prompt, 3) for prompt in prompts]
    assert greedy(model, prompts, [3] * len(prompts), Decoding((), 120)) == wanted
    assert max(held) <= 4 * 120


def test_windows_shorter_than_the_prompts() -> None:
    model = tiny("Mistral", vocab_size=300, sliding_window=5).eval()
    wanted = [alone(model, prompt, 12) for prompt in PROMPTS]
    assert decodes(model)
    assert greedy(model, PROMPTS, [12] * len(PROMPTS), Decoding((), 40)) == wanted
    wide = tiny("Mistral", vocab_size=300, sliding_window=60).eval()
    assert [alone(wide, prompt, 12) for prompt in PROMPTS] != wanted


def test_a_cache_without_a_window_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the window, beside the few tokens of a trial."""
    forward = decoding._forward

    def unwindowed(model, rows):
        with monkeypatch.context() as patch:
            patch.setattr(model.config, "sliding_window", 1000)
            return forward(model, rows)

    monkeypatch.setattr(decoding, "_forward", unwindowed)
    assert not decodes(tiny("Mistral", vocab_size=300, sliding_window=60).eval())


def test_a_model_that_is_not_packed_is_left_to_generate(tiny_model: Path) -> None:
    assert decodes(load_model(tiny_model).eval())
    other = load_model(tiny_model).eval()
    other.set_attn_implementation("eager")
    assert not decodes(other)


def test_the_models_own_generation_config_changes_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where merit decodes nor where `generate` does, which fills what it is not told from there."""
    monkeypatch.setattr(answers, "end_tokens", lambda *_: set())  # a model without any answers at full length
    wanted = [alone(load_model(tiny_model).eval(), prompt, 12) for prompt in PROMPTS]
    for attention in ("sdpa", "eager"):
        model = load_model(tiny_model).eval()
        model.set_attn_implementation(attention)
        own = GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, suppress_tokens=[wanted[0][0]])
        model.generation_config = own
        assert greedy_answers(model, None, PROMPTS, max_new_tokens=12, batch_tokens=10_000) == wanted
        assert model.generation_config is own


def test_a_cache_that_forgets_is_noticed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = decoding._begin

    def unmasked(model, row, room):
        rows = begin(model, row, room)
        return replace(rows, mask=torch.ones_like(rows.mask))

    monkeypatch.setattr(decoding, "_begin", unmasked)
    assert not decodes(load_model(tiny_model).eval())
