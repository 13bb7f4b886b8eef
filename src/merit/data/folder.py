"""The datasets in a folder: one a file, or one of several parts; splits that are only evaluated; what is not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import matching
from merit.data.columns import add_file
from merit.data.draft import Dataset, Draft
from merit.data.files import KINDS, PACKED, kind_of

# Data that a file of another kind holds, most likely.
_PACKED_ALIKE = {".xz", ".bz2", ".zip", ".tar", ".tgz", ".7z"}
_OTHER = {".feather", ".orc", ".avro", ".xlsx", ".xls"}
# train.jsonl, squad_test.json, train_sft.parquet, gsm8k-validation.csv
_SPLIT = re.compile(
    r"(?:(?P<name>.+?)[-_. ]+)?(?P<split>train|training|val|valid|validation|dev|eval|test|testing)"
    r"(?:[-_. ]+(?P<rest>.+))?",
    re.IGNORECASE,
)
# train-00000-of-00003
_PART = re.compile(r"(?P<name>.+)-\d+-of-(?P<count>\d+)")


@dataclass(frozen=True)
class Found:
    """One dataset: a file, or parts that belong together. `path` is what the configuration calls it; names of datasets
    and splits are taken from `label`."""

    files: tuple[Path, ...]
    path: str
    label: str
    notes: tuple[str, ...] = ()

    def dataset(self, base: Path, *, unseen: bool = False) -> Dataset:
        """The dataset to write; `path` is relative to `base`."""
        file, size = self.files[0], sum(item.stat().st_size for item in self.files)
        kind = file.name[len(_stem(file)) + 1 :].lower()
        return Dataset(self.label, self.path, base, unseen=unseen, size=size, kind=kind)


def add_folder(draft: Draft, folder: Path, by: str | None = None) -> None:
    """Adds the datasets of a folder. Of the splits of one dataset only that for training is trained on.

    Args:
        by: as of `add_file`, where there is only one.

    Raises:
        InputError: there is no data file in it, or several and `by`.
    """
    found = datasets_of(folder)
    unread = _unread(folder, found)
    notes = [*unread, *(note for item in found for note in item.notes)]
    if not found:
        more = "".join(f"; {note}" for note in notes)
        raise InputError(f"no data file in this folder ({', '.join(KINDS)}){more}", file=folder)
    evaluated = evaluated_of(found)
    draft.notes += notes
    if len(found) == 1:
        add_file(draft, found[0].dataset(folder), by)
    elif by:
        raise InputError(f"is for one file; this folder has {len(found)} datasets", file=folder, field="--by")
    else:
        for item in found:
            draft.add(item.dataset(folder, unseen=item in evaluated))
    if evaluated:
        splits = ", ".join(item.path for item in found if item in evaluated)
        said = "splits of a dataset that is trained on; they are only evaluated (`evaluate.unseen`)"
        draft.notes.append(f"{splits}: {said}")
    draft.trained += [f"# {note}" for note in unread]


def datasets_of(folder: Path) -> list[Found]:
    """The datasets in `folder`; where none is, those of the folders in it (`data/train-00000-of-00002.parquet`)."""
    places = [place for place in (folder, *_folders(folder)) if _data_files(place)]
    if folder in places:
        places = [folder]
    found = []
    for place in places:
        parts: dict[str, list[Path]] = {}
        for file in _data_files(place):
            stem, kind = _stem(file), file.name[len(_stem(file)) :]
            part = _PART.fullmatch(stem)
            pattern = f"{part['name']}-*-of-{part['count']}{kind}" if part is not None else file.name
            parts.setdefault(pattern, []).append(file)
        for pattern, files in parts.items():
            stem, part = _stem(files[0]), _PART.fullmatch(_stem(files[0]))
            notes: tuple[str, ...] = ()
            if part is not None and len(files) != int(part["count"]):
                notes = (f"{pattern}: only {len(files)} of its {int(part['count'])} parts are here",)
            path = (place / _pattern(pattern, files)).relative_to(folder).as_posix()
            label = part["name"] if part is not None else stem
            found.append(Found(tuple(files), path, f"{place.name}-{label}" if len(places) > 1 else label, notes))
    return found


def _pattern(pattern: str, files: list[Path]) -> str:
    """The name of all these parts; narrower than `pattern` where parts of another dataset fit that, too."""
    if len(files) == 1:
        return files[0].name
    if set(matching(files[0].with_name(pattern))) == set(files):
        return pattern
    start = commonprefix([file.name for file in files])  # noqa: RUF071 — characters are meant
    return f"{start}*{pattern.rpartition('*')[2]}"


def found_file(file: Path) -> Found:
    """A file that is a dataset by itself.

    Raises:
        InputError: it is of a kind that merit does not read.
    """
    if kind_of(file) is None:
        raise InputError(f"unknown kind of file; use one of {', '.join(KINDS)}", file=file)
    return Found((file,), file.name, _stem(file))


def _data_files(folder: Path) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if item.is_file() and kind_of(item) is not None)
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return sorted(
        item for item in folder.iterdir() if item.is_dir() and item.name != "runs" and not item.name.startswith(".")
    )


def _stem(file: Path) -> str:
    """The name without what tells the kind of file: `.jsonl`, `.jsonl.gz`."""
    return Path(file.stem).stem if file.suffix.lower() in PACKED else file.stem


def evaluated_of(found: list[Found]) -> set[Found]:
    """The splits to evaluate of datasets that have one to train on."""
    splits = {item: match for item in found if (match := _SPLIT.fullmatch(item.label))}
    named = {item: ((match["name"] or "").lower(), (match["rest"] or "").lower()) for item, match in splits.items()}
    trains = {item for item, match in splits.items() if match["split"].lower().startswith("train")}
    return {item for item in splits if item not in trains and named[item] in {named[train] for train in trains}}


def _unread(folder: Path, found: list[Found]) -> list[str]:
    """What may be data, and is not read: one line each."""
    read = {file.parent for item in found for file in item.files}
    notes = []
    for item in sorted(folder.iterdir()):
        suffix = item.suffix.lower()
        if not item.name.isprintable() or item.name.startswith("."):
            continue
        if item.is_dir():
            if item not in read and item.name != "runs" and _holds_data(item):
                notes.append(f"not read: the folder {item.name}: name its files in `mixture`, as {item.name}/FILE")
        elif suffix in _PACKED_ALIKE or (suffix in PACKED and kind_of(item) is None):
            notes.append(f"not read: {item.name}: unpack it first")
        elif suffix in _OTHER:
            notes.append(f"not read: {item.name}: not one of {', '.join(KINDS)}; convert it")
    return notes


def _holds_data(folder: Path) -> bool:
    try:
        return any(item.suffix.lower() in {*KINDS, *PACKED, *_PACKED_ALIKE, *_OTHER} for item in folder.iterdir())
    except OSError:
        return False
