"""Keeps secrets here: files that look like one are never pushed, whatever folder they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from merit.errors import InputError
from merit.push.contents import Item

_NAMES = re.compile(
    r"(\.env(\..*)?|\.netrc|\.git-credentials|\.pypirc|\.npmrc|id_(rsa|dsa|ecdsa|ed25519)(\.pub)?"
    r"|.*\.(pem|key|p12|pfx|kdbx|keystore)|(.*[._-])?(token|secrets?|credentials?|passwords?)(\.\w+)?)",
    re.IGNORECASE,
)
# Forms that no ordinary text has: the keys of common services, and private keys.
_TEXTS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "an AWS key": re.compile(rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})"),
    "an API key": re.compile(rb"\bsk-(proj-|ant-)?[A-Za-z0-9_-]{32,}"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "a Google API key": re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
_WEIGHTS = ".safetensors"
_MOST = 64_000_000  # bytes; a larger text file is refused rather than sent unread


def refuse_secrets(items: Iterable[Item]) -> None:
    """Looks at every name, and into every file but weights.

    Raises:
        InputError: one looks like a secret; names it, and never shows it.
    """
    for item in items:
        path = PurePosixPath(item.name)
        file = item.content if isinstance(item.content, Path) else Path(item.name)
        if any(_NAMES.fullmatch(part) for part in path.parts):
            raise InputError("this name looks like a secret's; move it away", file=file)
        if path.suffix == _WEIGHTS:
            continue
        if item.size > _MOST:
            raise InputError(f"too large to be looked through for secrets ({item.size:,} bytes)", file=file)
        text = item.read()
        for what, form in _TEXTS.items():
            if (found := form.search(text)) is not None:
                line = text.count(b"\n", 0, found.start()) + 1
                raise InputError(f"there is what looks like {what} in it", file=file, line=line)


def local_paths(items: Iterable[Item], home: Path) -> list[str]:
    """The files that name a place in the user's home folder: no secret, but worth knowing."""
    needle = str(home).encode()
    if len(home.parts) < 2:
        return []
    return [item.name for item in items if not item.name.endswith(_WEIGHTS) and needle in item.read()]
