"""Everything that can be known to be wrong before a byte is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merit.errors import InputError
from merit.merge.verify import check_shards
from merit.progress import SILENT, Progress
from merit.push.card import check_card, with_license
from merit.push.contents import CARD, Contents, Item
from merit.push.leaks import local_paths, refuse_secrets


def check_contents(
    contents: Contents, *, license: str | None = None, progress: Progress = SILENT
) -> tuple[Contents, list[str]]:
    """Hashes the weights, looks for secrets, and reads the card. Returns what goes, with `license` in its card, and
    what its owner should know.

    Raises:
        InputError: weights that are not what was merged; what looks like a secret; a card that the Hub would not take.
    """
    card = next(item for item in contents.items if item.name == CARD)
    text, file = _text(card), card.content if isinstance(card.content, Path) else Path(CARD)
    if license is not None:
        text = with_license(text, license, file)
        card = Item(CARD, text.encode())
        contents = replace(contents, items=[card if item.name == CARD else item for item in contents.items])
    notes = check_card(text, file)
    refuse_secrets(contents.items)
    check_shards(contents.merged, contents.record.result.checksums[contents.record.label], progress)
    if named := local_paths(contents.items, Path.home()):
        notes.append(f"names places in your home folder: {', '.join(named)}")
    return contents, notes


def _text(card: Item) -> str:
    try:
        return card.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("not valid UTF-8", file=str(card.content)) from None
