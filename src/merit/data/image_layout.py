"""Where images stand in an example's text, once each placeholder has become the tokens of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from merit.base.errors import InputError
from merit.data.example import Example, Message
from merit.data.image import BadImage, Checked, ImageChecker

Span = tuple[int, int]
Size = tuple[int, int]
Look = list[Checked]  # an example's images: bytes and facts


class ImageTokens(Protocol):
    """What the encoder must know of a model's image processor. `reserved` are texts that mean an image to the model."""

    @property
    def token(self) -> str: ...

    @property
    def reserved(self) -> frozenset[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def expansions(self, sizes: Sequence[Size]) -> list[str]:
        """What stands in the text for each image of one example; sizes are (width, height)."""
        ...


@dataclass(frozen=True)
class Expanded:
    """A text whose placeholders have been replaced; `spans` are the characters [start, end) of each image."""

    text: str
    spans: tuple[Span, ...]
    _moves: tuple[tuple[int, int], ...]  # (end in the old text, shift of what follows)

    @classmethod
    def of(cls, text: str, token: str, replacements: Sequence[str]) -> Expanded:
        """Replaces the first `len(replacements)` occurrences of `token`."""
        pieces = text.split(token, len(replacements))
        out, spans, moves, old = pieces[0], [], [], len(pieces[0])
        for replacement, piece in zip(replacements, pieces[1:], strict=True):
            spans.append((len(out), len(out) + len(replacement)))
            out += replacement
            old += len(token)
            moves.append((old, len(out) - old))
            out += piece
            old += len(piece)
        return cls(out, tuple(spans), tuple(moves))

    def moved(self, at: int) -> int:
        """Where character `at` of the old text is now."""
        return at + next((shift for end, shift in reversed(self._moves) if end <= at), 0)


def check_text(messages: Sequence[Message], reserved: frozenset[str]) -> None:
    """Refuses text that the model would take for an image.

    Raises:
        InputError: names the turn and the token.
    """
    for index, turn in enumerate(messages):
        for token in reserved:
            if token in turn.content:
                raise InputError(
                    f"the text holds {token!r}, which this model reads as an image, but no image belongs to it",
                    field=f"turn {index + 1}",
                )


def read_images(examples: Sequence[Example], checker: ImageChecker) -> list[Look | BadImage]:
    """Bytes and facts of each example's images, all inspected together; or the first image that is bad."""
    refs = [image for example in examples for image in example.images]
    checked = iter(checker.check(refs) if refs else [])
    found: list[Look | BadImage] = []
    for example in examples:
        mine = [next(checked) for _ in example.images]
        bad = next((item for item in mine if isinstance(item, BadImage)), None)
        found.append([item for item in mine if not isinstance(item, BadImage)] if bad is None else bad)
    return found
