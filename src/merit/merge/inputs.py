"""The inputs of a merge, whole checkpoints and adapters alike: opened, compared, and read a few rows at a time.

Before a byte is written, all inputs must have one architecture, the same tensors and the same tokens. Sources have the
output's tensor names, and read as float64. The files beside the weights, which the output takes over, are copied here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from merit.base.errors import InputError
from merit.base.files import is_own, read_json, write_json
from merit.merge.codec import Float64s, Scratch, decode
from merit.merge.lora import AdapterSource, FactorCache
from merit.models.adapter import Adapter, base_of, is_adapter
from merit.models.checkpoint import ITEM_BYTES, Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout

_KEPT = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_LEFT = ("config.json", "adapter_config.json", "trainer_state.json", "merit_merge.json")
_LEFT_ENDS = (".index.json", "_results.json")
_FOLDERS = ("additional_chat_templates",)
_MAX_BYTES = 100_000_000  # a tokenizer is smaller; anything else is data
_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_COMPARE_BYTES = 1 << 20


class Source(Protocol):
    """What the engine needs of an input."""

    @property
    def path(self) -> Path: ...

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        """Fills `out` (n,) with elements `start` to `start + n` of the flattened tensor `name`, exactly.

        `base` holds the same elements of θ0, where there is one.
        """

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        """Says that these elements are wanted soon."""


@dataclass(frozen=True)
class CheckpointSource:
    """A whole checkpoint."""

    path: Path
    tensors: Mapping[str, TensorInfo]  # the output's names → this checkpoint's tensors

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        raw = scratch.raw[: out.size * size]
        files.read(info, start * size, raw)
        decode(raw, info.dtype, out, scratch)

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        files.expect(info, start * size, count * size)


def dtype_name(dtype: str) -> str:
    """safetensors' name of a type → torch's."""
    return _NAMES[dtype]


def copy_side_files(sources: Sequence[Path], target: Path) -> None:
    """Copies what a server needs beside weights; where several folders have a file, the earlier one's is taken."""
    for source in sources:
        for file in sorted(source.iterdir()):
            if is_own(file, source) and _wanted(file) and not (target / file.name).exists():
                _copy(file, target / file.name)
        for name in _FOLDERS:
            for file in sorted((source / name).glob("*.jinja")):
                (target / name).mkdir(exist_ok=True)
                if is_own(file, source) and not (target / name / file.name).exists():
                    _copy(file, target / name / file.name)


def write_config(source: Path, target: Path, dtype: str) -> None:
    """config.json with its type fields set to what was written (`dtype`: safetensors' name)."""
    config = read_json(source / "config.json")
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = None
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.update({key: dtype_name(dtype) for key in ("dtype", "torch_dtype") if key in section})
    write_json(target / "config.json", config)


def _wanted(file: Path) -> bool:
    if file.name in _LEFT or file.name.startswith(".") or file.name.endswith(_LEFT_ENDS):
        return False
    if file.stat().st_size > _MAX_BYTES:
        return False
    return file.suffix in _KEPT or file.name.upper().startswith(_LEGAL)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())


@dataclass(frozen=True)
class OpenedInputs:
    """Sources in the order of the inputs, and θ0. `tensors` has the output's names and shapes, in order."""

    sources: tuple[CheckpointSource | AdapterSource, ...]
    base: CheckpointSource | None
    tensors: tuple[TensorInfo, ...]
    config_folder: Path  # whose config.json the output gets
    notes: tuple[str, ...]


def open_inputs(paths: Sequence[Path], base: Path | None) -> OpenedInputs:
    """Reads headers only. With adapters alone, the base says which tensors there are.

    Raises:
        InputError: an input that cannot be read, or does not fit the others; an adapter without its base.
    """
    for path in (*paths, *([base] if base is not None else [])):
        if not path.is_dir():
            raise InputError("no such folder", file=path)
    adapters = [path for path in paths if is_adapter(path)]
    if base is None and adapters:
        # merit does not open a folder because an adapter names it: the adapter may have come from anywhere.
        raise InputError(
            f"an adapter, trained on {base_of(adapters[0]) or 'an unnamed model'}; name its base with --base",
            file=adapters[0],
        )
    if base is not None and is_adapter(base):
        raise InputError("an adapter cannot be the base of a merge; name the model it was trained on", file=base)
    whole = [path for path in paths if not is_adapter(path)] + ([base] if base is not None else [])
    opened = [Checkpoint.open(path) for path in whole]
    alignment = align(opened)
    found = [
        CheckpointSource(one.path, {name: one.info(own) for name, own in names.items()})
        for one, names in zip(opened, alignment.matched, strict=True)
    ]
    theta0 = found.pop() if base is not None else None
    first = opened[0]
    cache = FactorCache()
    sources: list[CheckpointSource | AdapterSource] = []
    remaining = iter(found)
    for path in paths:
        if not is_adapter(path):
            sources.append(next(remaining))
        elif theta0 is not None:
            adapter = Adapter.open(path, opened[-1])
            sources.append(AdapterSource(path, adapter, theta0, theta0.tensors, cache))
    tensors = tuple(first.tensors[name] for name in alignment.names)
    return OpenedInputs(tuple(sources), theta0, tensors, first.path, alignment.notes)


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
        notes.append(f"{theirs} and {mine} have the same vocabulary but different settings; the merge takes the latter")
    for name in _TEMPLATES:
        a, b = first / name, other / name
        if a.is_file() and b.is_file() and a.read_bytes() != b.read_bytes():
            notes.append(f"{b} differs from {a}: {_first_difference(a, b)}; the merge takes the latter")


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
