"""What a row becomes: a row as its source holds it, the canonical example, and the encoded example."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from merit.base.errors import InputError
from merit.data.image import ImageRef

Role = Literal["system", "user", "assistant", "tool"]
IGNORED = -100  # label of a token that carries no loss, as in torch's cross entropy


@dataclass(frozen=True)
class Row:
    """One row, or what is wrong with it.

    Attributes:
        number: the 1-based line of a text file, the 1-based row of any other source.
        done: the share of the source, 0 to 1, that has been read up to here.
        value: the row as its source holds it, or the `Example` that a format made of it.
        error: why there is no value. The caller may stop, as a run does, or go on, as `merit check` does.
        place: the file that it is of, where its source has several.
    """

    number: int
    done: float
    value: Any = None
    error: InputError | None = None
    place: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        images: (the character of `content` that it stands before, image).
        learned: False for an assistant turn that its row masks: the model reads it, and no token of it carries loss.
        fields: what else the chat template may show, as a JSON object: `tool_calls`, `reasoning`, and a tool's `name`
            and `tool_call_id`. "" for none.
    """

    role: Role
    content: str
    images: tuple[tuple[int, ImageRef], ...] = ()
    learned: bool = True
    fields: str = ""

    @property
    def supervised(self) -> bool:
        """Whether its tokens carry loss where it stands in a completion."""
        return self.role == "assistant" and self.learned

    @property
    def more(self) -> dict[str, Any]:
        """`fields` as an object."""
        found: dict[str, Any] = json.loads(self.fields) if self.fields else {}
        return found

    @property
    def parts(self) -> list[str | ImageRef]:
        """Text and images, in the order in which they are read."""
        found: list[str | ImageRef] = []
        at = 0
        for offset, image in self.images:
            found += [self.content[at:offset], image]
            at = offset
        return [part for part in (*found, self.content[at:]) if part != ""]


@dataclass(frozen=True)
class Example:
    """One record in the canonical form.

    Every assistant turn of `completion` that its row does not mask is supervised, and nothing else. `reference` is the
    answer that exact match compares with; `verifier` is the JSON that a source's own scorer needs (reasoning_gym's
    entry); `tools` is the JSON list of functions that the chat template describes to the model.
    """

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    reference: str | None = None
    verifier: str | None = None
    tools: str | None = None

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in the order in which they are read."""
        return tuple(image for turn in (*self.prompt, *self.completion) for _, image in turn.images)

    @property
    def id(self) -> str:
        """32 hex digits of the content's SHA-256, so that new rows do not change the ids of others.

        Raises:
            BadImage: an image cannot be read.
        """
        turns: list[object] = [[_content(turn) for turn in part] for part in (self.prompt, self.completion)]
        if self.tools is not None:
            turns.append(self.tools)
        return hashlib.sha256(json.dumps(turns, ensure_ascii=True).encode()).hexdigest()[:32]

    @property
    def prompt_key(self) -> str:
        """32 hex digits that examples with the same prompt share, whatever their answers: of the text of the prompt's
        turns, where case, width and white space do not count, and their images. System messages count only where there
        is nothing else. An example without a prompt has the key of its content.

        Raises:
            BadImage: an image cannot be read.
        """
        asked = [turn for turn in self.prompt if turn.role != "system"] or self.prompt
        turns = [[turn.role, _normal(turn.content), [image.digest for _, image in turn.images]] for turn in asked]
        if not any(text or images for _, text, images in turns):
            return self.id
        return hashlib.sha256(json.dumps(turns, ensure_ascii=True).encode()).hexdigest()[:32]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _content(turn: Message) -> list[object]:
    content: list[object] = [turn.role, turn.content]
    if images := [[offset, image.digest] for offset, image in turn.images]:
        content.append(images)
    if turn.fields or not turn.learned:
        content.append({"fields": turn.fields, "learned": turn.learned})
    return content


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one example; `labels[i]` is `input_ids[i]` where token i carries loss, else IGNORED.

    The loss shifts labels by one, as in transformers. `images` are the files, in order, of the images whose tokens are
    among `input_ids`.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    images: Sequence[bytes] = field(default=(), repr=False)
    prompt_images: int = 0  # of `images`, those before the first supervised token

    @cached_property
    def supervised(self) -> int:
        """Supervised tokens. No token comes before the first one, so its label never carries loss."""
        return sum(label != IGNORED for label in self.labels[1:])
