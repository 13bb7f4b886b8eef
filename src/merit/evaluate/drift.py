"""Drift: how far a model has moved from what θ0 itself would say on general prompts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merit.data.encode import Encoder
from merit.data.example import IGNORED, Example, Message
from merit.evaluate.answers import greedy_answers
from merit.evaluate.scores import DriftSet


def general_prompts(count: int | None = None) -> list[str]:
    """The first `count` of merit's general prompts, or all."""
    return _lines("general_prompts.txt")[:count]


def general_texts(count: int) -> list[str]:
    """The first `count` of merit's passages of plain English."""
    return _lines("general_text.txt")[:count]


def _lines(name: str) -> list[str]:
    return resources.files("merit.evaluate").joinpath(name).read_text(encoding="utf-8").splitlines()


def make_drift_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    *,
    prompts: list[str],
    max_new_tokens: int,
    batch_tokens: int,
    fingerprint: str,
    advance: Callable[[int], None] = lambda _: None,
) -> DriftSet:
    """Lets θ0 answer `prompts`; only the answers' tokens carry loss, and an answer cut short gets no false ending."""
    encoded = [encoder.prompt_ids(Example(prompt=(Message("user", prompt),), completion=())) for prompt in prompts]
    answers = greedy_answers(
        model, tokenizer, encoded, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, advance=advance
    )
    pairs = [(ids, answer) for ids, answer in zip(encoded, answers, strict=True)]
    return DriftSet(
        fingerprint=fingerprint,
        prompts=prompts,
        answers=[tokenizer.decode(answer, skip_special_tokens=True) for answer in answers],
        input_ids=[[*ids, *answer] for ids, answer in pairs],
        labels=[[IGNORED] * len(ids) + answer for ids, answer in pairs],
    )
