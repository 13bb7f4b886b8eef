"""Datasets of the Hub, by id, and collections of them: their subsets and splits, as far as they can be looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from merit.base.errors import InputError
from merit.data.draft import Dataset, Draft
from merit.data.example import Row
from merit.data.reading import DatasetReader
from merit.data.source import hub_errors, undecoded

_PREFIX = re.compile(r"(?:https?://huggingface\.co/|hf://)(?:datasets/|collections/)?")
_ID = re.compile(r"[\w\-][\w.\-]*/[\w.\-]+")
_COLLECTION = re.compile(r".+-[0-9a-f]{24}")
_WHOLE = ("default", "all", "main")  # the subset that holds the others, or the one to take
_EVALUATED = ("validation", "valid", "dev", "test")
_PROBED = 20


def hub_id(text: str) -> str | None:
    """`org/name` in an id, or in an address of the Hub; None for anything else."""
    found = _PREFIX.sub("", text).rstrip("/")
    return found if _ID.fullmatch(found) else None


def add_hub(draft: Draft, name: str) -> None:
    """Adds a dataset of the Hub, or those of a collection. What cannot be looked at is added as a guess, which the
    comment says.

    Raises:
        InputError: a collection cannot be looked at, or holds no dataset.
    """
    for repository in _of_collection(name) if _COLLECTION.fullmatch(name) else [name]:
        _add_dataset(draft, repository)


def _of_collection(name: str) -> list[str]:
    from huggingface_hub import get_collection
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        items = get_collection(name).items
    except (HTTPError, OSError) as error:
        raise InputError(
            f"the collection cannot be looked at: {' '.join(str(error).split())[:200]}", file=name
        ) from None
    found = [item.item_id for item in items if item.item_type == "dataset"]
    if not found:
        raise InputError("no dataset in this collection", file=name)
    return found


def _add_dataset(draft: Draft, repository: str) -> None:
    label = repository.rpartition("/")[2]
    try:
        subsets = _subsets(repository)
    except InputError as error:
        draft.notes.append(f"{repository}: not looked at: {error.message}; `merit check` reads it")
        remark = "not looked at; subset, split (train) and format are guesses"
        draft.add(Dataset(label, repository, remark=remark))
        return
    whole = next((name for name in _WHOLE if name in subsets), None) if len(subsets) > 1 else None
    if whole is not None:
        others = [name for name in subsets if name != whole]
        draft.notes.append(f"{repository}: of its subsets only `{whole}`; there are also {_listed(others)}")
    for subset in [whole] if whole is not None else list(subsets):
        named = f"{label}-{subset}" if len(subsets) > 1 and whole is None else label
        fields = {"subset": subset} if subset != "default" else {}
        splits = subsets[subset]
        if not splits:
            draft.leave_out(named, InputError(f"the subset {subset} has no splits", file=repository))
            continue
        train = min(splits, key=lambda name: (name != "train", not name.startswith("train")))
        draft.add(Dataset(named, repository, fields=fields | _split(train), remark=f"split {train}"), look=_first_rows)
        for split in (item for item in splits if item in _EVALUATED and train == "train"):
            more = Dataset(f"{named}-{split}", repository, fields=fields | _split(split), unseen=True)
            draft.add(more, look=_first_rows)
        if rest := [item for item in splits if item != train and item not in _EVALUATED]:
            draft.notes.append(f"{repository}: not taken: the splits {_listed(rest)}")


def _split(name: str) -> dict[str, str]:
    return {"split": name} if name != "train" else {}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _subsets(repository: str) -> dict[str, list[str]]:
    """Subset → its splits."""
    import datasets

    with hub_errors(repository):
        names = datasets.get_dataset_config_names(repository)
        return {name: datasets.get_dataset_split_names(repository, name) for name in names}


def _first_rows(name: str, item: Dataset) -> str:
    """The format of the first rows, which are all that is downloaded."""
    import datasets

    config = item.config
    with hub_errors(item.path):
        rows = datasets.load_dataset(item.path, name=config.subset, split=config.split, streaming=True)
        first = list(islice(undecoded(rows), _PROBED))
    return f"format: {DatasetReader(name, config, _Sample(item.path, first)).format.name}"


@dataclass(frozen=True)
class _Sample:
    """A few rows as a `Source`."""

    place: str
    values: Sequence[Any]
    scores: bool = False

    def rows(self) -> Iterator[Row]:
        return (Row(number, 1.0, value) for number, value in enumerate(self.values, start=1))

    def fingerprint(self) -> str:
        raise NotImplementedError
