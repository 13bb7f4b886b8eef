"""Drift: how far a model's answers to general prompts have moved from those of θ0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from merit.base.record import Sealed
from merit.config.sections import EvaluateConfig
from merit.data.example import IGNORED, Encoded, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from merit.data.encode import Encoder


def general_prompts(count: int | None = None) -> list[str]:
    """The first `count` of merit's general prompts, or all."""
    return _lines("general_prompts.txt")[:count]


def general_texts(count: int) -> list[str]:
    """The first `count` of merit's passages of plain English."""
    return _lines("general_text.txt")[:count]


def _lines(name: str) -> list[str]:
    return resources.files("merit.evaluate").joinpath(name).read_text(encoding="utf-8").splitlines()


class DriftSet(Sealed):
    """θ0's own greedy answers. A model's loss on them is its drift; θ0's own loss is nearly the lowest possible."""

    fingerprint: str
    prompts: list[str]
    answers: list[str]
    input_ids: list[list[int]]
    labels: list[list[int]]

    @classmethod
    def of(
        cls,
        fingerprint: str,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        prompts: Sequence[str] | None = None,
    ) -> DriftSet:
        """From token ids, a prompt and its answer each. `prompts`: the prompts as text; default: as they decode."""
        return cls(
            fingerprint=fingerprint,
            prompts=list(prompts) if prompts is not None else [tokenizer.decode(ids) for ids, _ in pairs],
            answers=[tokenizer.decode(answer, skip_special_tokens=True) for _, answer in pairs],
            input_ids=[[*ids, *answer] for ids, answer in pairs],
            labels=[[IGNORED] * len(ids) + list(answer) for ids, answer in pairs],
        )

    @property
    def encoded(self) -> list[Encoded]:
        """Prompts and answers; only the answers are supervised."""
        return [Encoded(ids, labels) for ids, labels in zip(self.input_ids, self.labels, strict=True)]


def make_drift_set(
    model: PreTrainedModel,
    encoder: Encoder,
    config: EvaluateConfig,
    fingerprint: str,
    advance: Callable[[int], None],
) -> DriftSet:
    """Lets θ0 answer the general prompts. Only the answers' tokens carry loss; an answer cut short gets no end token.

    Args:
        fingerprint: of all that the answers depend on.
        advance: told the number of prompts answered.
    """
    from merit.evaluate.answers import greedy_answers

    tokenizer, prompts = encoder.tokenizer, general_prompts(config.drift)
    encoded = [encoder.prompt_ids(Example(prompt=(Message("user", prompt),), completion=())) for prompt in prompts]
    answers = greedy_answers(
        model,
        tokenizer,
        encoded,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        advance=advance,
    )
    return DriftSet.of(fingerprint, tokenizer, list(zip(encoded, answers, strict=True)), prompts)
