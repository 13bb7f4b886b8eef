"""What a row becomes: the row as its source holds it, the canonical example, and the encoded example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from merit.base.errors import InputError
from merit.data.image import ImageRef

Role = Literal["system", "user", "assistant", "tool"]
IGNORED = -100  # label of a token that carries no loss, as in torch's cross entropy


@dataclass(frozen=True)
class Row:
    """One row as the source holds it.

    `number` is the 1-based line of a text file and the 1-based row of any other source. `done` is the share of the
    source, 0 to 1, that was read up to here. A row that cannot be read has an `error` and no `value`: the caller may
    stop, as a run does, or go on, as `merit check` does.
    """

    number: int
    done: float
    value: Any = None
    error: InputError | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `images` are (character of `content` before which it stands, image), in order."""

    role: Role
    content: str
    images: tuple[tuple[int, ImageRef], ...] = ()

    @property
    def parts(self) -> list[str | ImageRef]:
        """Text and images, in the order in which they are read."""
        found: list[str | ImageRef] = []
        at = 0
        for offset, image in self.images:
            found += [self.content[at:offset]] if offset > at else []
            found.append(image)
            at = offset
        return found + ([self.content[at:]] if at < len(self.content) else [])


@dataclass(frozen=True)
class Example:
    """One record in the canonical form.

    Every assistant turn of `completion` is supervised, and nothing else. `reference` is the answer that exact match
    compares with; `verifier` is the JSON that a source's own scorer needs (reasoning_gym's entry).
    """

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    reference: str | None = None
    verifier: str | None = None

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in the order in which they are read."""
        return tuple(image for turn in (*self.prompt, *self.completion) for _, image in turn.images)

    @property
    def id(self) -> str:
        """32 hex digits that depend on the content alone, so that adding rows moves no other row.

        Raises:
            BadImage: an image cannot be read.
        """
        turns = [_content(m) for m in self.prompt], [_content(m) for m in self.completion]
        return hashlib.sha256(json.dumps(turns, ensure_ascii=True).encode()).hexdigest()[:32]


def _content(turn: Message) -> list[object]:
    images = [[offset, image.digest] for offset, image in turn.images]
    return [turn.role, turn.content, images] if images else [turn.role, turn.content]


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one example; `labels[i]` is `input_ids[i]` where token i carries loss, else IGNORED.

    Both are in the same positions: shifting by one is the loss's business, as in transformers. `images` are the bytes
    of the images whose tokens are among `input_ids`, in order.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    images: Sequence[bytes] = field(default=(), repr=False)
    prompt_images: int = 0  # of them, those before the first supervised token
    supervised: int = field(init=False)

    def __post_init__(self) -> None:
        # Position 0 predicts nothing: no earlier token exists, so its label never carries loss.
        count = sum(label != IGNORED for label in self.labels[1:])
        object.__setattr__(self, "supervised", count)
