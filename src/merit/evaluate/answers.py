"""Greedy answers, and whether an answer is right: by the source's own verifier, or by comparison with the reference."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from merit.base.errors import InputError
from merit.compute.abilities import takes_prompts_of_different_lengths
from merit.compute.batches import in_dtype, length_batches
from merit.compute.decoding import Decoding, decodes, greedy
from merit.data.encode import template_by
from merit.models.loading import images_of, positions_by

# Their scorers compare the grid that they read from the answer, a tuple of tuples, with the entry's, which JSON has
# turned into lists: every right answer would count as wrong.
_GRIDS = {"arc_agi", "rearc"}
# How models end their reasoning: Qwen, GLM and DeepSeek; Magistral; Command A; Seed.
_THOUGHT = re.compile(r"</think(ing)?>|\[/THINK\]|<\|END_THINKING\|>|</seed:think>")


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[bytes]] | None = None,
    *,
    max_new_tokens: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """The token ids of the model's greedy answer to each prompt (token ids), the end-of-turn token included.

    `images` are those that each prompt shows, in order. A batch holds `batch_tokens` tokens of prompts with padding,
    or prompts of one length if padding changes the model's answers. An answer ends where the model has no further
    position.

    Decoding is fixed here, whatever the model's own generation_config says: no sampling, no penalties. A score
    depends on such settings by tens of points, so every model of a run gets the same.
    """
    ends = end_tokens(model.generation_config, tokenizer)
    pad = min(ends, default=0)
    answers: list[list[int]] = [[] for _ in prompts]
    vision = images_of(model)
    lengths = [len(prompt) for prompt in prompts]
    positions = positions_by(model.config, (name for name, _ in model.named_parameters()))
    limit = positions.count if positions is not None and positions.table else sys.maxsize
    if prompts and decodes(model):  # a branch is asked nothing, and needs no trial
        rooms = [min(max_new_tokens, limit - length) for length in lengths]
        return greedy(model, prompts, rooms, Decoding(ends, batch_tokens, advance))
    batches = list(_batches(lengths, batch_tokens, limit - max_new_tokens))
    pads = any(lengths[batch[0]] != lengths[batch[-1]] for batch in batches)
    if pads and not takes_prompts_of_different_lengths(model, model.device):
        batches = list(_batches(lengths, batch_tokens, limit - max_new_tokens, equal=True))
    for batch in batches:
        room = min(max_new_tokens, limit - max(lengths[index] for index in batch))
        if room < 1:
            advance(len(batch))
            continue
        config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=room, eos_token_id=sorted(ends) or None, pad_token_id=pad
        )
        width = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for position, index in enumerate(batch):
            start = width - len(prompts[index])
            ids[position, start:] = torch.as_tensor(prompts[index])
            mask[position, start:] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if vision is not None:
            found = vision.inputs(ids, [images[index] if images else () for index in batch])
            inputs |= {name: in_dtype(value, model) for name, value in found.items()}
        with _neutral(model):
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()}, generation_config=config
            )
        for position, index in enumerate(batch):
            answers[index] = _until_end(output[position, width:].tolist(), ends)
        advance(len(batch))
    return answers


@contextlib.contextmanager
def _neutral(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation_config: `generate` takes from it, for example a penalty on repetition, what
    the configuration that it is given leaves open."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _batches(
    lengths: Sequence[int], batch_tokens: int, longest: int, *, equal: bool = False
) -> Iterator[Sequence[int]]:
    """Batches of prompts, with `equal` of one length; those of more than `longest` tokens, with less room to answer,
    come one by one."""
    for batch in length_batches(lengths, batch_tokens, equal=equal):
        if any(lengths[index] > longest for index in batch):
            yield from ([index] for index in batch)
        else:
            yield batch


def end_tokens(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those that the model's generation_config and its tokenizer name, and the one that ends a turn of the chat
    template: with that one a tuned base model ends its turns."""
    own = config.eos_token_id if config is not None else None
    ends = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id, template_by(tokenizer).end_token}
    return {token for token in ends if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


@dataclass(frozen=True)
class AnswerReader:
    """Reads the answer out of the tokens of an assistant turn, without what the template opens it with, and without
    reasoning: a reference has neither."""

    tokenizer: PreTrainedTokenizerBase
    opening: str  # the template's

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> AnswerReader:
        return cls(tokenizer, template_by(tokenizer).opening)

    def text(self, ids: Sequence[int]) -> str:
        """The answer as text."""
        whole: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        raw: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        bare = without_reasoning(raw.rpartition(self.opening)[2] if self.opening else raw)
        if bare == raw:
            return whole
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                bare = bare.replace(token.content, "")
        return bare


def without_reasoning(text: str) -> str:
    """What follows a think block, whether it or the prompt opens it."""
    ends = [match.end() for match in _THOUGHT.finditer(text)]
    return text[ends[-1] :] if ends else text


def score_answer(answer: str, *, reference: str | None, verifier: str | None) -> float:
    """A score in 0..1. The verifier decides where there is one (reasoning_gym gives partial credit), else equality
    after Unicode normalisation, with white space collapsed, case kept, and reasoning left out on both sides.

    Raises:
        InputError: a verifier is asked for and reasoning_gym is not installed.
    """
    if verifier is not None:
        return _verify(answer.strip(), verifier)
    if reference is None:
        return 0.0
    return float(_normal(without_reasoning(answer)) == _normal(without_reasoning(reference)))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _verify(answer: str, verifier: str) -> float:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise InputError("scoring needs reasoning_gym: pip install 'merit-tuning[demo]'") from None
    stored = json.loads(verifier)
    score = get_score_answer_fn(stored["name"])
    entry = stored["entry"]
    if stored["name"] in _GRIDS:
        entry = entry | {"metadata": {key: _tuples(value) for key, value in entry["metadata"].items()}}
    try:
        value = float(score(answer, entry))
    except Exception:  # a verifier raises what it likes at an answer that it did not foresee: a wrong one
        return 0.0
    return min(1.0, max(0.0, value))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
