"""Small images for tests, good and bad."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Any:
    """A Pillow image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """The image's bytes as a file of `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of random pixels."""
    return saved(noise(width, height, seed))
