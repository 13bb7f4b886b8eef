"""What of a run goes to the Hub: the merged model at the root, its card, and how it came about; all of it checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.config.yaml import read_yaml
from merit.merge.record import RECORD, MergeRecord, load_record, short_names
from merit.merge.verify import check_shards
from merit.run.layout import RunDir

CARD = "README.md"
MERGE_CARD = "MERGE.md"  # the merge's own card, where the run's takes its place
_MODEL = {".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


@dataclass(frozen=True)
class Item:
    """One file of the repository. `content` is a file on this disk, or bytes made for the Hub."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


class LeftOut(Record):
    """A file that is not uploaded, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Contents:
    """What would go."""

    merged: Path
    record: MergeRecord
    items: list[Item]
    left_out: list[LeftOut]


def gather(root: Path, *, model_only: bool = False) -> Contents:
    """What of a run directory, or of a folder that merit merged, goes to the Hub.

    Paths of this machine are taken out of the merge's record and of the configuration.

    Raises:
        InputError: neither; nothing merged yet; running sums; a symlink, which could lead anywhere.
    """
    if not root.is_dir():
        raise InputError("no such folder", file=root)
    run = RunDir(root) if (root / "config.yaml").is_file() else None
    merged = root if run is None else run.method().merged()
    if run is not None and not merged.is_dir():
        raise InputError("nothing is merged here yet; `merit run` merges the branches", file=root)
    for folder in (root, merged):
        _refuse_link(folder)
    record = load_record(merged)
    if record.scale is None:
        raise InputError("these are running sums, not a model", file=merged)
    items, left_out = _model(merged, record)
    if run is not None and not model_only:
        items = _with_story(run, items)
    if not any(item.name == CARD for item in items):
        raise InputError("there is no model card in it", file=merged / CARD)
    return Contents(merged, record, sorted(items, key=lambda item: item.name), left_out)


def _model(merged: Path, record: MergeRecord) -> tuple[list[Item], list[LeftOut]]:
    items, left_out = [], []
    for file in _files(merged):
        name = file.relative_to(merged).as_posix()
        if file.name == RECORD:
            items.append(Item(name, _without_places(record)))
        elif name == CARD or file.suffix in _MODEL or file.name.upper().startswith(_LEGAL):
            items.append(Item(name, file))
        else:
            left_out.append(LeftOut(name=name, reason="not part of a model"))
    return items, left_out


def _with_story(run: RunDir, items: list[Item]) -> list[Item]:
    """The run's card instead of the merge's, and the files that tell how the model was made."""
    found = list(items)
    if run.card.is_file():
        found = [Item(MERGE_CARD, item.content) if item.name == CARD else item for item in found]
        found.append(Item(CARD, run.card))
    files = (run.report, run.method().partition, run.table)
    found += [Item(file.relative_to(run.root).as_posix(), file) for file in files if file.is_file()]
    found.append(Item(run.config.name, _portable(run.config)))
    for file in (run.card, run.config, *files):
        _refuse_link(file)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        _refuse_link(path)
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError(
            "this is a symlink, which could lead anywhere; replace it with the file itself, or remove it", file=path
        )


def _without_places(record: MergeRecord) -> bytes:
    """The merge's record with short names instead of paths."""
    result = record.result
    known = [*result.inputs, *([result.base] if result.base else [])]
    named = [
        item.model_copy(update={"path": name})
        for item, name in zip(known, short_names([item.path for item in known]), strict=True)
    ]
    update = {"inputs": named[: len(result.inputs)], "base": named[-1] if result.base else None}
    cleaned = record.model_copy(update={"result": result.model_copy(update=update)})
    return (cleaned.model_dump_json(indent=2) + "\n").encode()


def _portable(config: Path) -> bytes:
    """The configuration with absolute paths shortened to what follows the folder that all of them share."""
    values, _ = read_yaml(config)
    places = sorted({text for text in _strings(values) if Path(text).is_absolute()})
    shared = os.path.commonpath([Path(place).parent for place in places]) if places else ""
    short = {place: Path(os.path.relpath(place, shared)).as_posix() for place in places}
    return yaml.safe_dump(_replaced(values, short), sort_keys=False, allow_unicode=True, width=120).encode()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _replaced(value: Any, new: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, new) for item in value]
    return new.get(value, value) if isinstance(value, str) else value


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
                raise InputError(f"this looks like {what}", file=file, line=line)


def local_paths(items: Iterable[Item], home: Path) -> list[str]:
    """The files that name a place in the user's home folder: no secret, but worth knowing."""
    needle = str(home).encode()
    if len(home.parts) < 2:
        return []
    return [item.name for item in items if not item.name.endswith(_WEIGHTS) and needle in item.read()]


def check_contents(
    contents: Contents, *, license: str | None = None, progress: Progress = SILENT
) -> tuple[Contents, list[str]]:
    """Hashes the weights, looks for secrets, and reads the card. Returns what goes, with `license` in its card, and
    what its owner should know.

    Raises:
        InputError: weights that are not what was merged; what looks like a secret; a card that the Hub would refuse.
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


_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_LISTS = ("tags", "datasets", "base_model", "language", "metrics")


def check_card(text: str, file: Path) -> list[str]:
    """What the card should say and does not, in sentences.

    Raises:
        InputError: metadata that is missing, not YAML, or not what the Hub takes; names field and file.
    """
    front = front_matter(text, file)
    for name in _LISTS:
        for value in _listed(front.get(name)):
            if not isinstance(value, str):
                raise InputError(f"expected text, got {value!r}", file=file, field=name)
    _check_ids(front, file)
    relation = front.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        raise InputError(f"{relation!r} is none of {', '.join(_RELATIONS)}", file=file, field="base_model_relation")
    _check_figures(front, file)
    notes = []
    if not front.get("license"):
        notes.append("the card names no license, so nobody may use the model; give one with --license")
    if not front.get("base_model"):
        notes.append("the card names no base model on the Hub: θ0 was a local one")
    if front.get("library_name") != "transformers":
        notes.append("the card does not say `library_name: transformers`, so the Hub shows no snippet to load it")
    return notes


def front_matter(text: str, file: Path) -> dict[str, Any]:
    """The YAML between the first two `---` lines.

    Raises:
        InputError: there is none.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise InputError("no metadata: a card begins with YAML between two `---` lines", file=file)
    stop = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        front = yaml.safe_load("\n".join(lines[1:stop]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark is not None else None
        raise InputError(f"the metadata are not YAML: {' '.join(str(error).split())}", file=file, line=line) from None
    if not isinstance(front, dict):
        raise InputError("the metadata are not a mapping", file=file, line=2)
    return front


def with_license(text: str, name: str, file: Path) -> str:
    """The card with `license: name` in its metadata."""
    front = front_matter(text, file) | {"license": name}
    lines = text.splitlines()
    stop = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    return "\n".join(["---", head, "---", *lines[stop + 1 :]]) + "\n"


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _check_ids(front: dict[str, Any], file: Path) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    for field in ("base_model", "datasets"):
        for name in _listed(front.get(field)):
            try:
                validate_repo_id(name)
            except HFValidationError:
                raise InputError(f"{name!r} is no Hub id", file=file, field=field) from None


def _check_figures(front: dict[str, Any], file: Path) -> None:
    """`model-index`, the Hub's form of results, as its own client reads it."""
    from huggingface_hub import ModelCardData

    known = {str(key): value for key, value in front.items()}
    try:
        ModelCardData(**known)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the Hub would refuse this: {first}", file=file, field="model-index") from None
