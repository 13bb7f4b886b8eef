"""Checks that inputs can be averaged, before a byte is written: one architecture, the same tensors, the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merit.base.errors import InputError
from merit.base.files import read_json
from merit.models.checkpoint import Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Alignment:
    """Which tensor of each checkpoint stands for which of the first. `notes` are differences that do not prevent it."""

    names: tuple[str, ...]  # the first checkpoint's own, in its order
    matched: tuple[Mapping[str, str], ...]  # a checkpoint each: first's name → its own
    notes: tuple[str, ...]


def align(checkpoints: Sequence[Checkpoint]) -> Alignment:
    """Matches the tensors of all checkpoints with the first one's.

    Raises:
        InputError: another architecture, a missing or extra tensor, another shape or vocabulary; names the tensor.
    """
    first = checkpoints[0]
    layout = find_layout(first.tensors)
    names = tuple(first.tensors)
    matched: list[Mapping[str, str]] = [{name: name for name in names}]
    notes: list[str] = []
    for other in checkpoints[1:]:
        _check_architecture(first, other)
        theirs = find_layout(other.tensors)
        if theirs.generation != layout.generation:
            notes.append(f"{other.path} has {theirs.generation}, {first.path} {layout.generation}: matched by meaning")
        found = {layout.names[name]: own for name, own in theirs.names.items() if name in layout.names}
        _check_tied(first, other, found, notes)
        for name in names:
            if name not in found:
                raise InputError(f"missing here, but {first.path} has it", file=other.path, field=name)
            _check_shape(first.tensors[name], other.info(found[name]), other.path)
        if extra := sorted(set(other.tensors) - set(found.values()) - _spare_head(first, other)):
            raise InputError(f"not in {first.path}", file=other.path, field=extra[0])
        matched.append(found)
        _check_tokenizer(first.path, other.path, notes)
    return Alignment(names, tuple(matched), tuple(notes))


def _check_architecture(first: Checkpoint, other: Checkpoint) -> None:
    for key in ("model_type", "architectures"):
        mine, theirs = first.config.get(key), other.config.get(key)
        if mine != theirs and mine is not None and theirs is not None:
            raise InputError(f"{theirs}, but {first.path} is {mine}", file=other.path / "config.json", field=key)
    if first.tied != other.tied:
        raise InputError(
            f"{other.tied}, but {first.tied} in {first.path}: one ties its output head, the other does not",
            file=other.path / "config.json",
            field="tie_word_embeddings",
        )


def _check_shape(mine: TensorInfo, theirs: TensorInfo, path: Path) -> None:
    if mine.shape == theirs.shape:
        return
    message = f"shape {list(theirs.shape)}, but {list(mine.shape)} in {mine.file.parent}"
    if mine.shape[1:] == theirs.shape[1:] and len(mine.shape) == 2:
        message += "; vocabularies padded differently? resize them to one size first"
    raise InputError(message, file=path, field=theirs.name)


def _check_tied(first: Checkpoint, other: Checkpoint, found: dict[str, str], notes: list[str]) -> None:
    """Where the head is tied, some trainers store it and some do not: a stored copy must equal the embeddings."""
    if not first.tied:
        return
    if first.head is not None and first.head not in found and other.embedding is not None:
        found[first.head] = other.embedding
        notes.append(f"{other.path} does not store its tied head: its embeddings stand for it")
    for checkpoint in (first, other):
        head, embedding = checkpoint.head, checkpoint.embedding
        if head and embedding and not _same_bytes(checkpoint.info(head), checkpoint.info(embedding)):
            raise InputError(
                "differs from the input embeddings, though the config ties them", file=checkpoint.path, field=head
            )


def _spare_head(first: Checkpoint, other: Checkpoint) -> set[str]:
    return {other.head} if first.tied and first.head is None and other.head else set()


def _same_bytes(one: TensorInfo, two: TensorInfo) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    with FilePool() as files:
        for start in range(0, one.nbytes, _COMPARE_BYTES):
            count = min(_COMPARE_BYTES, one.nbytes - start)
            pair = np.empty((2, count), np.uint8)
            files.read(one, start, pair[0])
            files.read(two, start, pair[1])
            if not np.array_equal(pair[0], pair[1]):
                return False
    return True


def _check_tokenizer(first: Path, other: Path, notes: list[str]) -> None:
    mine, theirs = first / "tokenizer.json", other / "tokenizer.json"
    if mine.is_file() and theirs.is_file() and mine.read_bytes() != theirs.read_bytes():
        one, two = _vocabulary(mine), _vocabulary(theirs)
        if one != two:
            token = min(set(one.items()) ^ set(two.items()))[0]
            raise InputError(
                f"token {token!r} is number {two.get(token, 'none')}, but {one.get(token, 'none')} in {first}: "
                "the rows of the embeddings mean different tokens",
                file=theirs,
            )
        notes.append(f"{theirs} and {mine} have one vocabulary but other settings; the merge has the latter's")
    for name in _TEMPLATES:
        a, b = first / name, other / name
        if a.is_file() and b.is_file() and a.read_bytes() != b.read_bytes():
            notes.append(f"{b} differs from {a}: {_first_difference(a, b)}; the merge has the latter")


def _first_difference(a: Path, b: Path) -> str:
    one, two = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (a, b))
    for number, (left, right) in enumerate(zip(one, two, strict=False), 1):
        if left != right:
            return f"line {number} is {right[:60]!r} instead of {left[:60]!r}"
    return f"{len(two)} lines instead of {len(one)}"


def _vocabulary(file: Path) -> dict[str, Any]:
    value = read_json(file)
    model = value.get("model", {}) if isinstance(value, dict) else {}
    vocabulary = model.get("vocab", {}) if isinstance(model, dict) else {}
    if isinstance(vocabulary, list):  # Unigram: [token, score] by number
        vocabulary = {str(item[0]) if isinstance(item, list) and item else json.dumps(item): number
                      for number, item in enumerate(vocabulary)}  # fmt: skip
    found = {str(token): number for token, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    added = value.get("added_tokens", []) if isinstance(value, dict) else []
    for item in added if isinstance(added, list) else []:
        if isinstance(item, dict):
            found[str(item.get("content"))] = item.get("id")
    return found
