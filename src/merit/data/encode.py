"""The one encoder: counting, gradients, training, evaluation and reports see the same tokens and the same mask."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import fingerprint
from merit.data.example import IGNORED, Encoded, Example, Message
from merit.data.image import BadImage, ImageChecker, Look, thumbnail
from merit.data.mixture import Rendered
from merit.data.template import ChatTemplate

_VERSION = 1  # part of the fingerprint: raise it when the encoding of any example changes
POSITIONS = "merit_positions"  # the attribute of a tokenizer that is `Positions` of its model
IMAGE_TOKENS = "merit_images"  # the attribute of a vision-language model, and of its tokenizer, that is `ImageTokens`

Span = tuple[int, int]  # characters [start, end)
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Positions:
    """How many tokens a model can read at once.

    Attributes:
        table: whether it looks positions up in a table, and so cannot read more. Else it was made for `count`, and
            computes further ones.
    """

    count: int
    table: bool


class ImageTokens(Protocol):
    """What the encoder must know of a model's image processor. `reserved` are texts that mean an image to the model."""

    @property
    def token(self) -> str: ...

    @property
    def reserved(self) -> frozenset[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def expansions(self, sizes: Sequence[Size]) -> list[str]:
        """What stands in the text for each image of one example."""
        ...


@dataclass(frozen=True)
class Layout:
    """An example as text: `spans` are supervised, `images` hold the tokens of each image."""

    text: str
    spans: tuple[Span, ...]
    prompt: str  # the text before the first supervised turn, generation prompt included
    images: tuple[Span, ...] = ()
    contents: tuple[bytes, ...] = ()  # of the images
    sizes: tuple[Size, ...] = ()


class Encoder:
    """Turns examples into token ids and labels.

    Args:
        tokenizer: a fast tokenizer of transformers; its chat template is used, or a plain one where it has none.
        max_length: longer examples are truncated at the end; also those with more tokens than the model has positions.

    Raises:
        InputError: the tokenizer is a slow one, which cannot say which characters a token covers.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("merit needs a fast tokenizer (tokenizer.json); this model has none", field="model")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.positions: Positions | None = getattr(tokenizer, POSITIONS, None)
        self.image_tokens: ImageTokens | None = getattr(tokenizer, IMAGE_TOKENS, None)
        self.template = template_by(tokenizer)

    @property
    def limit(self) -> int:
        """The most tokens of an example."""
        return self.positions.count if self.positions is not None and self._cuts else self.max_length

    @property
    def limit_name(self) -> str:
        """What sets the limit, for messages."""
        return f"the model's {self.limit:,} positions" if self._cuts else "`train.max_length`"

    @property
    def _cuts(self) -> bool:
        return self.positions is not None and self.positions.table and self.positions.count < self.max_length

    def encode(self, example: Example) -> Encoded:
        """Token ids and labels; labels cover every assistant turn of the completion, through its end-of-turn token.

        Raises:
            InputError: the chat template refuses the example, or hides what to supervise.
        """
        return self.encode_layouts([self.layout(example)])[0][0]

    def prompt_ids(self, example: Example) -> list[int]:
        """What greedy decoding starts from: the tokens that stand before the first supervised one in training.

        They are cut off the example's one tokenization. A prompt tokenized alone can differ in its last tokens, so that
        a model would be asked in a way it was never tuned on. The completion may be empty.

        Raises:
            InputError: as `encode`.
        """
        if not any(turn.role == "assistant" for turn in example.completion):
            example = replace(example, completion=(*example.completion, Message("assistant", "x")))
        return self.encode_layouts([self.layout(example)])[0][1]

    def render(self, example: Example) -> Rendered:
        """The example as the model sees it, with small images. The spans are read off the labels."""
        layout = self.layout(example)
        text = layout.text
        encoded = self.encode_layouts([layout])[0][0]
        offsets = self._tokenize([text])["offset_mapping"][0][: len(encoded.labels)]
        spans: list[Span] = []
        for (start, end), label, before in zip(offsets, encoded.labels, [IGNORED, *encoded.labels[:-1]], strict=True):
            if label != IGNORED and before != IGNORED and spans:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            elif label != IGNORED:
                spans.append((start, end))
        if encoded.truncated and offsets:
            text = text[: offsets[-1][1]]
        sizes = layout.sizes[: len(encoded.images)]
        # One word for the thousand tokens of an image.
        words = [f"[image {number}: {width} × {height}]" for number, (width, height) in enumerate(sizes, start=1)]
        short = _Replaced.of(text, layout.images[: len(words)], words)
        shown = [(short.moved(start), short.moved(end)) for start, end in spans]
        return Rendered(text=short.text, spans=shown, images=[thumbnail(content) for content in encoded.images])

    def special_text(self, example: Example) -> str | None:
        """The first special token of the model that the text of a turn spells out. It is read as the token itself."""
        texts = (turn.content for turn in (*example.prompt, *example.completion))
        found = (self._special.search(text) for text in texts if self._special is not None)
        return next((match[0] for match in found if match is not None), None)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        known = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides the encoding of an example, `limit` apart."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # State of the last call, not content.
        content.pop("truncation", None)
        content.pop("padding", None)
        special = {key: str(value) for key, value in self.tokenizer.special_tokens_map.items()}
        images = (self.image_tokens.fingerprint,) if self.image_tokens is not None else ()
        return fingerprint(_VERSION, content, special, self.template.source, *images)

    def layout(self, example: Example, look: Look | None = None) -> Layout:
        """The text of an example, the characters to supervise, and those of its images.

        Args:
            look: its images, where they have been read.

        Raises:
            InputError: as `encode`; images for a model that takes none, or a template that drops them.
        """
        plain = self._plain_layout(example)
        if self.image_tokens is None:
            if example.images:
                raise InputError("this model takes no images; choose a vision-language model", field="image")
            return plain
        _check_text(example, self.image_tokens.reserved)
        places, in_prompt = (
            [match.span() for match in re.finditer(re.escape(self.image_tokens.token), text)]
            for text in (plain.text, plain.prompt)
        )
        if len(places) != len(example.images):
            raise InputError(
                f"the chat template shows {len(places)} of its {len(example.images)} images", field="image"
            )
        if not example.images:
            return plain
        if look is None:
            found = ImageChecker(2**62).look([example.images])[0]
            if isinstance(found, BadImage):
                raise found
            look = found
        sizes = tuple((facts.width, facts.height) for _, facts in look)
        tokens = self.image_tokens.expansions(sizes)
        whole = _Replaced.of(plain.text, places, tokens)
        prompt = _Replaced.of(plain.prompt, in_prompt, tokens[: len(in_prompt)])
        spans = tuple((whole.moved(start), whole.moved(end)) for start, end in plain.spans)
        return Layout(whole.text, spans, prompt.text, whole.spans, tuple(content for content, _ in look), sizes)

    def _plain_layout(self, example: Example) -> Layout:
        messages = (*example.prompt, *example.completion)
        answers = [i for i in range(len(example.prompt), len(messages)) if messages[i].supervised]
        if not answers:
            raise InputError("no assistant turn in the completion, so there is nothing to learn")
        template = self.template.with_tools(example.tools)
        full = template.whole(messages)
        spans = tuple(template.turn(messages, index, full) for index in answers)
        if answers[0] == 0 or not self.template.has_prompt_header:
            return Layout(full, spans, full[: spans[0][0]])
        return Layout(full, spans, template.text(messages[: answers[0]], prompt=True))

    def encode_layouts(self, layouts: Sequence[Layout]) -> list[tuple[Encoded, list[int]]]:
        """Encodes many at once, which lets the tokenizer use all cores; each with its `prompt_ids`."""
        if not layouts:
            return []
        batch = self._tokenize([layout.text for layout in layouts])
        return [
            self._labelled(layout, ids, offsets)
            for layout, ids, offsets in zip(layouts, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def _labelled(self, layout: Layout, ids: list[int], offsets: list[Span]) -> tuple[Encoded, list[int]]:
        """No token of an image carries loss, and a cut that would fall among an image's tokens falls before them."""
        places = np.asarray(offsets, np.int64).reshape(-1, 2)
        mask = supervised_mask(places, layout.spans)
        first = int(mask.argmax())
        if layout.text.startswith(layout.prompt):
            prompt = list(ids[:first])
        else:
            # The generation prompt opens what the text of a conversation leaves out (`<think>`): it stands alone.
            prompt = self._tokenize([layout.prompt])["input_ids"][0]
        if not mask.any():
            first = len(ids)
        end, kept, before = min(len(ids), self.limit), 0, 0
        for span in layout.images:
            tokens = np.flatnonzero(supervised_mask(places, [span]))
            mask[tokens] = False
            if int(tokens[-1]) >= end:
                end = min(end, int(tokens[0]))
                continue
            kept += 1
            before += int(tokens[0]) < first
        labels = np.where(mask, np.asarray(ids, np.int64), IGNORED)[:end].tolist()
        return Encoded(list(ids[:end]), labels, end < len(ids), layout.contents[:kept], before), prompt

    def _tokenize(self, texts: list[str]) -> Any:
        # The template has written bos and the like into the text: special tokens are never added a second time.
        return self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )


def loses_reasoning(example: Example, text: str) -> bool:
    """Whether the template left reasoning of an assistant turn to be learned out of `text`."""
    turns = [turn for turn in example.completion if turn.role == "assistant"]
    thoughts = [turn.content.rpartition("</think>")[0].rpartition("<think>")[2] for turn in turns]
    thoughts += [turn.more.get("reasoning", "") for turn in turns]
    return any(thought.strip() not in text for thought in thoughts)


def template_by(tokenizer: Any) -> ChatTemplate:
    """The chat template of a tokenizer, with its model's token for images."""
    images: ImageTokens | None = getattr(tokenizer, IMAGE_TOKENS, None)
    return ChatTemplate(tokenizer, images.token if images else None)


def supervised_mask(offsets: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens are supervised: those that hold any character of a span.

    A token across a span's start predicts the turn's first characters, so it counts. A tokenizer that trims offsets
    gives white space an empty range at its right end: such a token belongs to the span when its end does.

    Args:
        offsets: (tokens, 2) characters [start, end) of each token.
        spans: characters [start, end).
    """
    begin, end = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), np.bool_)
    for start, stop in spans:
        overlaps = (begin < stop) & (end > start)
        empty_inside = (begin == end) & (end > start) & (end <= stop)
        mask |= overlaps & (begin < end) | empty_inside
    return mask


@dataclass(frozen=True)
class _Replaced:
    """A text with some parts replaced; `spans` are the characters of the replacements."""

    text: str
    spans: tuple[Span, ...]
    _moves: tuple[tuple[int, int], ...]  # (end in the old text, shift of what follows)

    @classmethod
    def of(cls, text: str, places: Sequence[Span], replacements: Sequence[str]) -> _Replaced:
        """Replaces the characters at `places`."""
        out, spans, moves, at = "", [], [], 0
        for (start, end), new in zip(places, replacements, strict=True):
            out += text[at:start]
            spans.append((len(out), len(out) + len(new)))
            out += new
            moves.append((end, len(out) - end))
            at = end
        return cls(out + text[at:], tuple(spans), tuple(moves))

    def moved(self, at: int) -> int:
        """Where character `at` of the old text is now."""
        return at + next((shift for end, shift in reversed(self._moves) if end <= at), 0)


def _check_text(example: Example, reserved: frozenset[str]) -> None:
    """Refuses text that the model would take for an image.

    Raises:
        InputError: names the turn and the token.
    """
    messages = (*example.prompt, *example.completion)
    texts = {f"turn {number}": turn.content + turn.fields for number, turn in enumerate(messages, start=1)}
    for field, text in (*texts.items(), ("tools", example.tools or "")):
        for token in reserved:
            if token in text:
                raise InputError(
                    f"the text holds {token!r}, which this model reads as an image, but no image belongs to it",
                    field=field,
                )
