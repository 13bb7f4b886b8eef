"""Datasets of the Hugging Face Hub, through `datasets`; rows come from its memory-mapped cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merit.data.row import Row
from merit.errors import InputError


@dataclass(frozen=True)
class HubSource:
    """One split of a Hub dataset. Nothing is loaded until its rows or its fingerprint are wanted."""

    place: str
    subset: str | None
    split: str
    scores: bool = False
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    def rows(self) -> Iterator[Row]:
        dataset = self._load()
        total = max(len(dataset), 1)
        for number, value in enumerate(dataset, start=1):
            yield Row(number, number / total, value)

    def fingerprint(self) -> str:
        """`datasets`' own fingerprint of the split's files, which covers the revision."""
        return f"hub:{self.place}:{self.subset}:{self.split}:{self._load()._fingerprint}"

    def _load(self) -> Any:
        if not self._loaded:
            self._loaded.append(_load(self.place, self.subset, self.split))
        return self._loaded[0]


def cache_folders() -> tuple[Path, ...]:
    """Where `datasets` and the Hub's client put what they download."""
    import datasets
    from huggingface_hub import constants

    config = datasets.config
    found = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    return tuple(Path(folder) for folder in found)


def _load(path: str, subset: str | None, split: str) -> Any:
    import datasets
    import datasets.exceptions

    try:
        return _undecoded(datasets.load_dataset(path, name=subset, split=split))
    except datasets.exceptions.DatasetNotFoundError:
        message = "no such dataset on the Hub (or it is private: log in with `hf auth login`), and no such file"
    except (ConnectionError, TimeoutError):
        message = (
            "the Hub cannot be reached and the dataset is not in the local cache; if a file was meant, it is missing"
        )
    except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
        # An unknown subset or split, a gated dataset, a damaged file; its own message says which.
        message = f"cannot be loaded: {' '.join(str(error).split())[:300]}"
    raise InputError(message, file=path)


def _undecoded(dataset: Any) -> Any:
    """Image columns as `{bytes, path}`: decoding is for those that are used, and only once."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset
