"""Sources: where rows come from. Every kind streams, so memory does not grow with a file's size."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from merit.base.errors import InputError, did_you_mean
from merit.base.files import matching
from merit.config.sections import DatasetConfig
from merit.data import files, gym
from merit.data.example import Row
from merit.demo import visual
from merit.models.source import check_readable


class Source(Protocol):
    """What every kind of source offers.

    `place` names it in error messages. `scores` says whether its rows carry what the source's own scorer needs.
    """

    @property
    def place(self) -> str: ...

    @property
    def scores(self) -> bool: ...

    def rows(self) -> Iterator[Row]:
        """Streams all rows, from the start at every call.

        Raises:
            InputError: the source cannot be opened, or its rest cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the rows change. For a file it is the SHA-256 of the bytes: modification times differ between
        machines and after a checkout, and hashing is much cheaper than tokenizing."""
        ...


def open_source(config: DatasetConfig, base: Path, at: str) -> Source:
    """The source of the dataset at field `at`; relative paths are taken from `base`, the configuration's folder.

    Reads nothing large yet, but finds what is already wrong: a missing file, an unknown family.

    Raises:
        InputError: no such file, an unknown kind of file, an unknown reasoning_gym family or option.
    """
    field = f"{at}.path"
    if config.path.startswith(gym.PREFIX):
        return gym.GymSource.open(config, at)
    if config.path.startswith(visual.PREFIX):
        return visual.VisualSource.open(config, at)
    if config.options:
        raise InputError(f"only generators (`{gym.PREFIX}`, `{visual.PREFIX}`) take options", field=f"{at}.options")
    # Only `~/`: a file may well be called `~x.jsonl`.
    path = base / (Path(config.path).expanduser() if config.path.startswith("~/") else config.path)
    kind = files.kind_of(path)
    check_readable(path, config.path, field)
    parts = [item for item in matching(path) if item.is_file()]
    if parts:
        if kind is None:
            message = f"unknown kind of file; use one of {', '.join(files.KINDS)}, or text packed as .gz or .zst"
            raise InputError(message, file=config.path, field=field)
        if parts == [path]:
            return kind(path=path, place=config.path)
        folder = config.path.rpartition("/")[0]
        places = [f"{folder}/{item.name}" if folder else item.name for item in parts]
        return FileParts(
            config.path, tuple(kind(path=item, place=name) for item, name in zip(parts, places, strict=True))
        )
    if path.is_dir():
        raise InputError("this is a folder; name one file in it", file=config.path, field=field)
    # `data/train`, where there is a folder `data`, is a file that is missing, not a dataset of the user `data`.
    local = kind is not None or config.path.startswith(".") or ("/" in config.path and path.parent.is_dir())
    if not local and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", config.path):
        return HubSource(place=config.path, subset=config.subset, split=config.split)
    raise InputError(f"no such file{_nearest_file(path)}", file=config.path, field=field)


def _nearest_file(path: Path) -> str:
    try:
        return did_you_mean(path.name, [item.name for item in path.parent.iterdir()])
    except OSError:
        return ""


@dataclass(frozen=True)
class FileParts:
    """Files that are one dataset, one after another, in the order of their names: `train-*-of-00003.parquet`."""

    place: str
    parts: tuple[files.FileSource, ...]
    scores: bool = False

    @property
    def path(self) -> Path:
        """The first file."""
        return self.parts[0].path

    def rows(self) -> Iterator[Row]:
        for index, part in enumerate(self.parts):
            for row in part.rows():
                yield replace(row, done=(index + row.done) / len(self.parts), place=part.place)

    def fingerprint(self) -> str:
        return "parts:" + ":".join(part.fingerprint() for part in self.parts)


@dataclass(frozen=True)
class HubSource:
    """One split of a Hub dataset. Nothing is loaded until its rows or its fingerprint are wanted."""

    place: str
    subset: str | None
    split: str
    scores: bool = False

    def rows(self) -> Iterator[Row]:
        total = max(len(self._dataset), 1)
        for number, value in enumerate(self._dataset, start=1):
            yield Row(number, number / total, value)

    def fingerprint(self) -> str:
        """`datasets`' own fingerprint of the split's files, which covers the revision."""
        return f"hub:{self.place}:{self.subset}:{self.split}:{self._dataset._fingerprint}"

    @cached_property
    def _dataset(self) -> Any:
        return _load(self.place, self.subset, self.split)


def cache_folders() -> tuple[Path, ...]:
    """Where `datasets` and the Hub's client put what they download."""
    import datasets
    from huggingface_hub import constants

    config = datasets.config
    found = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    return tuple(Path(folder) for folder in found)


def _load(path: str, subset: str | None, split: str) -> Any:
    import datasets

    with hub_errors(path):
        return undecoded(datasets.load_dataset(path, name=subset, split=split))


@contextlib.contextmanager
def hub_errors(path: str) -> Iterator[None]:
    """Turns what `datasets` raises for the dataset `path` into an InputError."""
    import datasets.exceptions

    try:
        yield
        return
    except datasets.exceptions.DatasetNotFoundError:
        message = "no such dataset on the Hub (or it is private: log in with `hf auth login`), and no such file"
    except (ConnectionError, TimeoutError):
        message = "the Hub cannot be reached, the dataset is not in the local cache, and there is no such file"
    except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
        # An unknown subset or split, a gated dataset, a damaged file; its own message says which.
        message = f"cannot be loaded: {' '.join(str(error).split())[:300]}"
    raise InputError(message, file=path)


def undecoded(dataset: Any) -> Any:
    """Image columns as `{bytes, path}`: decoding is for those that are used, and only once. A stream may not know its
    columns."""
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset
