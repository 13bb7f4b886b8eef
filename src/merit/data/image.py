"""Images of examples: where their bytes are, whether they can be read, and how they become RGB.

A bad image is a `BadImage`, found when the data is checked: by default its example is left out, and named.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import sqlite3
import stat
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from http.client import HTTPException
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError

from merit.base.errors import InputError
from merit.base.files import write_bytes
from merit.base.machine import usable_cores
from merit.models.source import cache_folder

_log = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 64 * 2**20
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
    "ICO": (".ico",),
}
# What Pillow may open. Left out: formats that run other programs (EPS), that hold no pixels, or that nobody tunes on.
FORMATS = tuple(kind for kind in _ENDINGS if kind != "MPO")  # which Pillow opens as JPEG
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = {5, 6, 7, 8}  # orientations that swap width and height


class BadImage(InputError):
    """An image that cannot be used."""


@dataclass(frozen=True)
class ImageRef:
    """Where one image's bytes are: a file, the row itself, or the web.

    `at` is the field that it came from; `name` is its name in messages.
    """

    name: str
    at: str
    path: Path | None = None
    url: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def is_place(self) -> bool:
        """Whether an image is still to be put here."""
        return self.path is None and self.url is None and self.data is None

    def read(self) -> bytes:
        """The file's bytes, as they are.

        Raises:
            BadImage: no such file, no bytes, too many.
        """
        if self.data is not None:
            content = self.data
        elif self.url is not None:
            content = _fetch(self, self.url)
        else:
            content = _read_file(self)
        if not content:
            raise self.bad("has no bytes")
        if len(content) > MAX_IMAGE_BYTES:
            raise self.bad(f"is larger than {MAX_IMAGE_BYTES:,} bytes")
        return content

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex: the image's identity, wherever it lies.

        Raises:
            BadImage: as `read`.
        """
        return hashlib.sha256(self.read()).hexdigest()

    def bad(self, why: str) -> BadImage:
        return BadImage(f"the image {self.name} {why}", field=self.at)


def _read_file(ref: ImageRef) -> bytes:
    if ref.path is None:
        raise ref.bad("has neither path, address nor bytes")
    try:
        if not stat.S_ISREG((facts := ref.path.stat()).st_mode):
            raise ref.bad("is no plain file")
        if facts.st_size > MAX_IMAGE_BYTES:
            raise ref.bad(f"is larger than {MAX_IMAGE_BYTES:,} bytes")
        return ref.path.read_bytes()
    except FileNotFoundError:
        raise ref.bad("is missing: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ref.bad(f"cannot be read: {reason}") from None


def _fetch(ref: ImageRef, url: str) -> bytes:
    """Fetched once, then kept in merit's cache: the data is read twice."""
    kept = cache_folder() / "fetched" / hashlib.sha256(url.encode()).hexdigest()
    if kept.is_file():
        return kept.read_bytes()
    try:
        content = fetch(url, MAX_IMAGE_BYTES)
    except OSError as error:
        raise ref.bad(f"cannot be fetched: {error}") from None
    # A page that says "try again later" comes with a good status, too, and must not be kept for ever.
    if len(content) <= MAX_IMAGE_BYTES and _is_image(content):
        write_bytes(kept, content)
    return content


def _is_image(content: bytes) -> bool:
    """Whether the head is one of an image; nothing is decoded."""
    try:
        with _opened(content):
            return True
    except Exception:  # as in `inspect`
        return False


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a usable image: its size as the model sees it, and what `decode` does to it."""

    width: int
    height: int
    kind: str  # Pillow's name of the format
    notes: tuple[str, ...] = ()  # "turned", "animated", "16-bit", "CMYK", "transparent"

    def misnamed(self, name: str) -> bool:
        """Whether a file's ending says another format."""
        ending = Path(name).suffix.lower()
        known = {item for endings in _ENDINGS.values() for item in endings}
        return ending in known and ending not in _ENDINGS.get(self.kind, ())


def inspect(content: bytes, max_pixels: int) -> ImageFacts:
    """Decodes an image to its last byte, at the lowest resolution that its format allows.

    Raises:
        InputError: not an image, cut short, damaged, or more pixels than `max_pixels`; the message continues the
            image's name.
    """
    image_module = _pillow()
    try:
        with _opened(content) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(f"has {width:,} × {height:,} pixels, more than `max_pixels` {max_pixels:,}")
            notes = _notes(image)
            if image.format == "JPEG":
                # Every bit is still parsed, but pixels are made at an eighth of the size: four times as fast.
                image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
            turned = image.getexif().get(_ORIENTATION, 1)
            image.load()
            kind = str(image.format)
    except InputError:
        raise
    except image_module.DecompressionBombError as error:
        raise InputError(f"has far more pixels than `max_pixels` {max_pixels:,}") from error
    except image_module.UnidentifiedImageError as error:
        raise InputError("is not an image, or of a kind that is not read") from error
    except Exception as error:  # Pillow's plugins raise what they like at damaged bytes
        raise InputError(f"is damaged: {' '.join(str(error).split())[:100] or type(error).__name__}") from error
    if turned in _TURNED:
        width, height = height, width
    return ImageFacts(width, height, kind, (*notes, "turned") if turned not in (0, 1) else notes)


def decode(content: bytes) -> Any:
    """A Pillow image in RGB, turned as its EXIF orientation says; transparency on white, 16 bits scaled to 8.

    Raises:
        InputError: damaged; what `inspect` accepts is not.
    """
    _pillow()
    from PIL import ImageOps

    try:
        with _opened(content) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise InputError(f"an image of the run is damaged: {' '.join(str(error).split())[:100]}") from error


def to_rgb(image: Any) -> Any:
    """`image` in mode RGB."""
    image_module = _pillow()
    if image.mode == "RGB":
        return image
    if _is_deep(image):
        import numpy as np

        values = np.asarray(image).astype(np.float64)
        if image.mode != "F" or values.max(initial=0) > 1:
            values = values / (65535 if values.max(initial=0) > 255 else 255)
        grey = (values.clip(0, 1) * 255).round().astype(np.uint8)
        return image_module.fromarray(grey).convert("RGB")
    if _is_transparent(image):
        layer = image.convert("RGBA")
        ground = image_module.new("RGBA", layer.size, (255, 255, 255, 255))
        return image_module.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def thumbnail(content: bytes, side: int = 112) -> str:
    """A small JPEG of the image as a data URI, for reports."""
    image = decode(content)
    image.thumbnail((side, side))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _is_deep(image: Any) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_transparent(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _notes(image: Any) -> tuple[str, ...]:
    found = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        found.append("animated")
    if _is_deep(image):
        found.append("16-bit")
    if image.mode == "CMYK":
        found.append("CMYK")
    if _is_transparent(image):
        found.append("transparent")
    return tuple(found)


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """The Pillow image, not yet decoded; its warnings are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _pillow().open(BytesIO(content), formats=_formats()) as image:
            yield image


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    image_module = _pillow()
    image_module.init()
    return tuple(kind for kind in FORMATS if kind in image_module.OPEN)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InputError("images need Pillow: pip install 'merit-tuning[vision]'") from None
    return Image


_VERSION = 1  # of what `inspect` finds

Look = list[tuple[bytes, ImageFacts]]  # the files of an example's images, and what is known of them


class ImageChecker:
    """Inspects images on all cores.

    Args:
        cache: an SQLite file that remembers results; None remembers nothing. An unusable one is ignored.
    """

    def __init__(self, max_pixels: int, cache: Path | None = None) -> None:
        self._max_pixels = max_pixels
        self._memory = _Memory(cache, max_pixels) if cache is not None else None
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="merit-image")

    def look(self, examples: Sequence[Sequence[ImageRef]]) -> list[Look | BadImage]:
        """The images of each example, all inspected together; or the first of them that is bad."""
        checked = iter(self._check([ref for refs in examples for ref in refs]))
        found: list[Look | BadImage] = []
        for refs in examples:
            mine = list(islice(checked, len(refs)))
            bad = next((item for item in mine if isinstance(item, BadImage)), None)
            found.append(bad or [item for item in mine if not isinstance(item, BadImage)])
        return found

    def _check(self, refs: Sequence[ImageRef]) -> list[tuple[bytes, ImageFacts] | BadImage]:
        read = list(self._pool.map(_read, refs))
        wanted = dict(item for item in read if not isinstance(item, BadImage))
        known = self._memory.get(wanted) if self._memory is not None else {}
        fresh = {digest: content for digest, content in wanted.items() if digest not in known}
        new = dict(zip(fresh, self._pool.map(self._inspect, fresh.values()), strict=True))
        if self._memory is not None:
            self._memory.add(new)
        known |= new
        found: list[tuple[bytes, ImageFacts] | BadImage] = []
        for ref, item in zip(refs, read, strict=True):
            facts = known[item[0]] if not isinstance(item, BadImage) else ""
            if isinstance(item, BadImage) or isinstance(facts, str):
                found.append(item if isinstance(item, BadImage) else ref.bad(str(facts)))
            else:
                found.append((item[1], facts))
        return found

    def _inspect(self, content: bytes) -> ImageFacts | str:
        try:
            return inspect(content, self._max_pixels)
        except InputError as error:
            return error.message


def _read(ref: ImageRef) -> tuple[str, bytes] | BadImage:
    """SHA-256 and bytes."""
    try:
        content = ref.read()
    except BadImage as error:
        return error
    return hashlib.sha256(content).hexdigest(), content


class _Memory:
    """SHA-256 → facts, or what is wrong, in a file: what is held in memory does not grow with the number of images."""

    def __init__(self, file: Path, max_pixels: int) -> None:
        self._file, self._limit = file, max_pixels

    @cached_property
    def _usable(self) -> bool:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as base:
                base.execute("create table if not exists images (key text primary key, facts text) without rowid")
        except (OSError, sqlite3.Error) as error:
            _log.info("images are not remembered between checks: %s", error)
            return False
        return True

    def get(self, digests: Collection[str]) -> dict[str, ImageFacts | str]:
        """Those that are known."""
        found: dict[str, ImageFacts | str] = {}
        if digests and self._usable:
            with contextlib.suppress(sqlite3.Error, ValueError, TypeError, KeyError), self._open() as base:
                for digest in digests:
                    row = base.execute("select facts from images where key = ?", (self._key(digest),)).fetchone()
                    if row is not None:
                        found[digest] = _parse(row[0])
        return found

    def add(self, facts: dict[str, ImageFacts | str]) -> None:
        """Remembers more."""
        if facts and self._usable:
            rows = [
                (self._key(digest), json.dumps(item if isinstance(item, str) else asdict(item)))
                for digest, item in facts.items()
            ]
            with contextlib.suppress(sqlite3.Error), self._open() as base:
                base.executemany("insert or replace into images values (?, ?)", rows)

    def _key(self, digest: str) -> str:
        return f"{_VERSION}:{self._limit}:{digest}"

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self._file, timeout=10)
        try:
            with base:
                base.execute("pragma synchronous = off")  # losing it costs a second look, nothing more
                yield base
        finally:
            base.close()


def _parse(text: str) -> ImageFacts | str:
    value = json.loads(text)
    if isinstance(value, str):
        return value
    return ImageFacts(int(value["width"]), int(value["height"]), str(value["kind"]), tuple(value["notes"]))


SILENCE = 20.0  # seconds without a byte
WHOLE = 300.0  # seconds for the whole file: a server that drips is never silent
_TRIES = 3
_PAUSE = 1.0  # seconds before the second try, twice that before the third
_BUSY = {429, 500, 502, 503, 504}  # worth another try
_PIECE = 2**18


def fetch(url: str, limit: int, *, silence: float = SILENCE, whole: float = WHOLE) -> bytes:
    """The bytes at an `http` or `https` address, no more than `limit` + 1 of them.

    Redirections are followed to such addresses only: one to `file:` would read this machine.

    Raises:
        OSError: there is no such file, or it cannot be fetched; the text says why.
    """
    for attempt in range(_TRIES):
        time.sleep(_PAUSE * attempt)
        try:
            return _get(url, limit, silence, whole)
        except OSError as error:
            passing = isinstance(getattr(error, "reason", error), ConnectionError)
            if isinstance(error, HTTPError):
                error.close()
                passing = error.code in _BUSY
            if not passing or attempt == _TRIES - 1:
                raise
        except (HTTPException, ValueError) as error:
            raise OSError(str(error) or type(error).__name__) from error
    raise AssertionError("the last try returns or raises")


def _get(url: str, limit: int, silence: float, whole: float) -> bytes:
    end = time.monotonic() + whole
    found = bytearray()
    with _opener().open(url, timeout=silence) as answer:
        while piece := answer.read1(min(_PIECE, limit + 1 - len(found))):
            found += piece
            if time.monotonic() > end:
                raise TimeoutError(f"not whole after {whole:g} seconds")
        if answer.length and len(found) <= limit:
            raise ConnectionError(f"cut short after {len(found):,} bytes")
    return bytes(found)


@cache
def _opener() -> request.OpenerDirector:
    """Knows http, https and the environment's proxies, and nothing else: urllib's own would read `file:` and `ftp:`."""
    opener = request.OpenerDirector()
    opener.addheaders = [("User-Agent", "merit")]
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
