"""What differs between inputs in the files beside the weights. A merge takes one input's; the user should know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merit.base.files import read_json
from merit.merge.record import hub_id
from merit.models.adapter import CONFIG, HUB_ID, base_of, model_name

_GENERATION = "generation_config.json"
_TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json")  # the former goes first
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
               "image_processor_config.json")  # fmt: skip
_NOISE = ("_", "transformers_version", "processor_class", "image_processor_type", "feature_extractor_type")
_ADDS = ("add_bos_token", "add_eos_token", "add_prefix_space")
_TEMPLATES = "additional_chat_templates"
_MOST = 3  # differences that a note names


def side_notes(paths: Sequence[Path]) -> list[str]:
    """The differences that change how the merge reads its input, or where it stops. Templates are compared apart."""
    notes = []
    for name in (_GENERATION, *_PROCESSORS):
        holders = [path for path in paths if (path / name).is_file()]
        if holders[:1] not in ([], [paths[0]]) and name == _GENERATION and (paths[0] / "config.json").is_file():
            notes.append(f"{paths[0]} has no {name}; the merge takes that of {holders[0]}")
        for other in holders[1:]:
            notes += _differences(
                holders[0] / name, other / name, *(_settings(path / name) for path in (holders[0], other))
            )
    holders = [path for path in paths if any((path / name).is_file() for name in _TOKENIZERS)]
    for other in holders[1:]:
        mine, theirs = _special(holders[0]), _special(other)
        both = mine.keys() & theirs.keys()
        notes += _differences(
            holders[0] / _TOKENIZERS[0],
            other / _TOKENIZERS[0],
            *({key: value for key, value in one.items() if key in both} for one in (mine, theirs)),
        )
    return [*notes, *_code(paths)]


def base_notes(adapters: Sequence[Path], base: Path) -> list[str]:
    """Whether each adapter was trained on `base`, as far as names tell: copies of one model have many names."""
    name = str(hub_id(str(base)) or _object(base / "config.json").get("_name_or_path"))
    notes = []
    for path in adapters:
        theirs = base_of(path) or ""
        if HUB_ID.fullmatch(name) and HUB_ID.fullmatch(theirs) and model_name(theirs) != model_name(name):
            notes.append(f"{path} was trained on {theirs!r}, and the base is {name!r}: make sure that they are one")
    revisions = {path: _object(path / CONFIG).get("revision") for path in adapters}
    said = {str(revision): path for path, revision in revisions.items() if revision}
    if len(said) > 1:
        (one, first), (two, other), *_ = said.items()
        notes.append(f"{other} was trained on revision {two!r} of its base, {first} on {one!r}")
    return notes


def template_notes(first: Path, other: Path) -> list[str]:
    """What differs in the chat templates that loaders would take: a file of its own goes before the configuration's."""
    mine, theirs = _templates(first), _templates(other)
    if not mine and theirs:
        file, _ = next(iter(theirs.values()))
        return [f"{file} has a chat template, {first} has none: the merge takes the latter's tokenizer, without one"]
    notes = []
    for name in mine.keys() & theirs.keys():
        (file, text), (other_file, other_text) = mine[name], theirs[name]
        if text != other_text:
            which = f" in the template {name!r}" if name != "default" else ""
            notes.append(f"{other_file} differs from {file}{which}: {_first_difference(text, other_text)}; the merge "
                         "takes the latter")  # fmt: skip
    if mine and (lost := sorted(theirs.keys() - mine.keys())):
        notes.append(f"{other} has a chat template {lost[0]!r}, {first} has none of this name; the merge takes the "
                     "latter's")  # fmt: skip
    return notes


def _templates(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name → file and text; the one that is used by default is named so."""
    found: dict[str, tuple[Path, str]] = {}
    for file in sorted((folder / _TEMPLATES).glob("*.jinja")):
        found[file.stem] = (file, _text(file))
    file = folder / "chat_template.jinja"
    if file.is_file():
        return found | {"default": (file, _text(file))}
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = _object(folder / name).get("chat_template")
        if isinstance(value, str):
            return found | {"default": (folder / name, value)}
        if isinstance(value, list):
            named = [item for item in value if isinstance(item, dict) and isinstance(item.get("template"), str)]
            return found | {str(item.get("name")): (folder / name, str(item["template"])) for item in named}
    return found


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _first_difference(mine: str, theirs: str) -> str:
    one, two = mine.splitlines(), theirs.splitlines()
    for number, (left, right) in enumerate(zip(one, two, strict=False), 1):
        if left != right:
            return f"line {number} is {right[:60]!r} instead of {left[:60]!r}"
    return f"{len(two)} lines instead of {len(one)}"


def _differences(mine_at: Path, theirs_at: Path, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if keys:
        said = ", ".join(
            f"`{key}` {_short(theirs.get(key))} instead of {_short(mine.get(key))}" for key in keys[:_MOST]
        )
        more = f" and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
        yield f"{theirs_at} has {said}{more}; the merge takes {mine_at.parent}'s"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _settings(file: Path) -> dict[str, Any]:
    """What a file says, without what config.json says as well: configurations are compared by themselves."""
    said = _object(file.parent / "config.json")
    found = _object(file).items()
    return {key: value for key, value in found if not key.startswith(_NOISE) and (key, value) not in said.items()}


def _special(folder: Path) -> dict[str, Any]:
    """The special tokens by their role, and whether they are added: what a tokenizer's two files together say."""
    config, named = (_object(folder / name) for name in _TOKENIZERS)
    roles = {
        role: token.get("content") if isinstance(token, dict) else token
        for role, token in {**named, **config}.items()
        if role.endswith("_token") and isinstance(token, str | dict)
    }
    return roles | {key: config[key] for key in _ADDS if isinstance(config.get(key), bool)}


def _code(paths: Sequence[Path]) -> Iterator[str]:
    holders = [path for path in paths if any(path.glob("*.py"))]
    for other in holders[1:]:
        names = sorted({file.name for path in (holders[0], other) for file in path.glob("*.py")})
        for name in names:
            one, two = holders[0] / name, other / name
            if not (one.is_file() and two.is_file()) or one.read_bytes() != two.read_bytes():
                yield f"{other} has other code than {holders[0]} ({name}); the merge takes the latter's"
                break


def _object(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.is_file() else {}
    return value if isinstance(value, dict) else {}
