"""Places elsewhere (S3, GCS, SFTP, …), opened through fsspec; what goes wrong there becomes one clear line."""

from __future__ import annotations

import re
from typing import Any

from merit.base.errors import InputError, first_line


def is_url(text: str) -> bool:
    """Whether `text` is a URL; one that went through `Path` and lost a slash counts."""
    return re.match(r"^[a-z][a-z0-9+.\-]+:/", text) is not None


def url_of(text: str) -> str:
    """The URL with all its slashes."""
    protocol, rest = text.split(":/", 1)
    if rest.startswith("/"):
        return text
    return f"{protocol}://{'/' if protocol == 'file' else ''}{rest}"


def open_url(url: str, *, field: str | None = None) -> tuple[Any, str]:
    """fsspec's file system of a URL (or of a local folder), and the path in it. `field` is the setting that names it.

    Raises:
        InputError: not a URL that fsspec knows, or its driver (s3fs, gcsfs, …) is not installed.
    """
    import fsspec

    refused: tuple[type[Exception], ...] = (ImportError, ValueError, *url_errors())
    try:
        system, root = fsspec.core.url_to_fs(url_of(url) if is_url(url) else url)
    except refused as error:
        raise InputError(f"cannot be opened: {first_line(error)}", file=url, field=field) from error
    return system, str(root)


def url_errors() -> tuple[type[Exception], ...]:
    """What a file system of fsspec raises when the place or the way there fails: the system's errors, and those of the
    HTTP client below it."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return (OSError,)
    return (OSError, ClientError)
