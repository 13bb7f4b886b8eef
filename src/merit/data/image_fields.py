"""Where a row names its images, in the ways that datasets do, and where in the conversation each of them stands.

A row's images come in a column (`image`, `images`: paths, Hugging Face's `{bytes, path}`, data addresses) whose places
are `<image>` in the text or parts `{"type": "image"}` without content; or in the parts themselves.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from merit.base.errors import InputError
from merit.data.example import Message
from merit.data.image import BadImage, ImageRef

MARK = "<image>"
_COLUMNS = ("images", "image")
_PAYLOADS = ("image", "image_url", "url", "path", "base64", "bytes", "data")

Turns = tuple[Message, ...]


@dataclass(frozen=True)
class ImageSource:
    """How one dataset's images are found.

    Attributes:
        folder: what relative paths start from, and no path leaves; None where rows bring their bytes (the Hub), so that
            a path is refused.
        urls: whether addresses of the web may be fetched.
        caches: where `datasets` puts images that it has downloaded; its rows name them by absolute paths.
    """

    folder: Path | None = None
    urls: bool = False
    caches: tuple[Path, ...] = ()

    def ref(self, value: Any, at: str) -> ImageRef:
        """The image that `value` stands for.

        Raises:
            BadImage: an address that is refused, no base64, a path where there is no folder.
            InputError: nothing that could be an image.
        """
        if isinstance(value, bytes | bytearray):
            return ImageRef("in the row", at, data=bytes(value))
        if isinstance(value, Mapping):
            return self._from_mapping(value, at)
        if not isinstance(value, str) or not value:
            kind = "null" if value is None else type(value).__name__
            raise InputError(f"an image must be a path, {{bytes, path}} or a data address, not {kind}", field=at)
        return self._from_text(value, at)

    def _from_mapping(self, value: Mapping[str, Any], at: str) -> ImageRef:
        content, name = value.get("bytes"), value.get("path")
        cached = isinstance(name, str) and any(_inside(Path(name), cache) for cache in self.caches)
        if "bytes" in value and content is None and cached:
            return ImageRef(str(name), at, path=Path(str(name)))
        if isinstance(content, bytes | bytearray):
            return ImageRef(str(name) if name else "in the row", at, data=bytes(content))
        for key in ("base64", "data"):
            if isinstance(value.get(key), str):
                return _inline(str(value[key]), at)
        for key in ("url", "path", "image", "image_url"):
            if value.get(key) is not None:
                return self.ref(value[key], f"{at}.{key}")
        raise InputError("holds neither bytes nor a path", field=at)

    def _from_text(self, value: str, at: str) -> ImageRef:
        if value.startswith("data:"):
            return _inline(value, at)
        scheme = urlsplit(value).scheme if "://" in value else ""
        shown = value if len(value) <= 100 else f"{value[:97]}…"
        if scheme in ("http", "https"):
            if not self.urls:
                raise BadImage(f"the image {shown} is on the web; download it, or set `image_urls: true`", field=at)
            return ImageRef(shown, at, url=value)
        if scheme == "file":
            value = urlsplit(value).path
        elif scheme:
            raise BadImage(f"the image {shown} has an address of a kind that is not read", field=at)
        if self.folder is None:
            raise BadImage(
                f"the image {shown} is a path, but nothing says in which folder; set `image_folder`", field=at
            )
        path = self.folder / value
        if not _inside(path, self.folder):
            raise BadImage(
                f"the image {shown} lies outside of {self.folder}; set `image_folder` to a folder that holds it",
                field=at,
            )
        return ImageRef(shown, at, path=path)


NO_FOLDER = ImageSource()


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` stays in `folder`. A row may come from anyone, and must not choose what is read from the disk;
    links that lie in the folder are the user's own, and are followed."""
    if "\0" in str(path):
        return True  # no such file can be: whoever opens it says so
    plain = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100 — links are followed
    return plain or path.resolve().is_relative_to(folder.resolve())


def _inline(text: str, at: str) -> ImageRef:
    """The image that `text` holds in base64, with or without a `data:` head."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadImage("the image in the row is a `data:` address that is not base64", field=at)
    try:
        return ImageRef("in the row", at, data=base64.b64decode("".join(text.split()), validate=True))
    except ValueError as error:
        raise BadImage(f"the image in the row is not base64: {error}", field=at) from None


def part_image(part: Mapping[str, Any], images: ImageSource, at: str) -> ImageRef:
    """The image of a content part; one without content is a place, to be filled from the row's column."""
    payload = next((key for key in _PAYLOADS if part.get(key) is not None), None)
    if payload is None:
        return ImageRef("", at)
    if payload in ("bytes", "base64", "data"):
        return images.ref({payload: part[payload]}, at)
    return images.ref(part[payload], f"{at}.{payload}")


def row_images(row: Mapping[str, Any], column: str | None, images: ImageSource) -> list[ImageRef]:
    """The images in the row's column: the named one, or the first of `images`, `image` that has any.

    Raises:
        InputError: as `ImageSource.ref`.
    """
    name = column or next((key for key in _COLUMNS if row.get(key) not in (None, [], "")), None)
    value = row.get(name) if name is not None else None
    if name is None or value in (None, [], ""):
        return []
    if isinstance(value, list):
        return [images.ref(item, f"{name}[{index}]") for index, item in enumerate(value)]
    return [images.ref(value, name)]


def place_images(prompt: Turns, completion: Turns, given: Sequence[ImageRef]) -> tuple[Turns, Turns]:
    """Puts the column's images into their places; without any place, all before the first user turn's text.

    Raises:
        InputError: more images than places or fewer; an image in an assistant turn.
    """
    turns = [*prompt, *completion]
    if given:
        turns = [_marked(turn) if turn.role != "assistant" else turn for turn in turns]
    places = [image for turn in turns for _, image in turn.images if image.is_place]
    if given and not places:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise InputError("there are images, but no user turn to show them in", field=given[0].at)
        turns[first] = replace(turns[first], images=(*((0, image) for image in given), *turns[first].images))
    elif len(places) != len(given):
        where = given[0].at.partition("[")[0] if given else places[0].at
        raise InputError(f"{len(given)} images for {len(places)} places", field=where)
    else:
        left = iter(given)
        turns = [_filled(turn, left) for turn in turns]
    for turn in turns:
        if turn.role == "assistant" and turn.images:
            raise InputError("an image in an assistant turn: only text can be learned", field=turn.images[0][1].at)
    return tuple(turns[: len(prompt)]), tuple(turns[len(prompt) :])


def _filled(turn: Message, left: Iterator[ImageRef]) -> Message:
    if not turn.images:
        return turn
    return replace(turn, images=tuple((at, next(left) if image.is_place else image) for at, image in turn.images))


def _marked(turn: Message) -> Message:
    """Turns every `<image>` of the text into a place. A line break that only sets it apart goes with it."""
    if MARK not in turn.content:
        return turn
    text, images, old = "", [], list(turn.images)
    rest, at = turn.content, 0
    while True:
        before, mark, after = rest.partition(MARK)
        while old and old[0][0] <= at + len(before):
            images.append((len(text) + old[0][0] - at, old.pop(0)[1]))
        if not mark:
            return replace(turn, content=text + before, images=tuple(images))
        at += len(before) + len(MARK)
        text += before
        if not text and after.startswith("\n"):
            after, at = after[1:], at + 1
        elif not after and text.endswith("\n"):
            text = text[:-1]
        images.append((len(text), ImageRef("", "images")))
        rest = after
