"""The inputs of a merge, whole checkpoints and adapters alike: opened, compared, and read a few rows at a time.

Before a byte is written, all inputs must have one architecture, the same tensors and the same tokens. Sources have the
output's tensor names, and read as float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from merit.base.errors import InputError
from merit.base.files import read_json, write_json
from merit.merge.codec import Float64s, Scratch, decode
from merit.merge.lora import AdapterSource, FactorCache
from merit.merge.settings import compare_settings
from merit.merge.side_files import check_side_files, check_tokenizers
from merit.merge.side_notes import base_notes, side_notes
from merit.models.adapter import Adapter, base_of, check_bases, is_adapter
from merit.models.architecture import architecture_of, is_computed
from merit.models.checkpoint import ITEM_BYTES, WHOLE, Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout, same_names
from merit.models.plain_decoders import plain_tensors

_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_COMPARE_BYTES = 1 << 20
_ADAPTED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\.")


class Source(Protocol):
    """What the engine needs of an input."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        """Fills `out` (n,) with elements `start` to `start + n` of the flattened tensor `name`, exactly.

        `base` holds the same elements of θ0, where there is one.
        """

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        """Says that these elements are wanted soon."""

    def factors(self, files: FilePool, name: str) -> tuple[Float64s, Float64s] | None:
        """B (outputs × r) and A (r × inputs), where the input differs from θ0 by B A; None where it has no such."""


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

    def factors(self, files: FilePool, name: str) -> None:
        """A whole checkpoint has none."""


def dtype_name(dtype: str) -> str:
    """safetensors' name of a type → torch's."""
    return _NAMES[dtype]


def write_config(source: Path, target: Path, dtype: str) -> None:
    """config.json with its type fields set to what was written (`dtype`: safetensors' name)."""
    config = read_json(source / "config.json")
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = None
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.update({key: dtype_name(dtype) for key in ("dtype", "torch_dtype") if key in section})
    write_json(target / "config.json", config)


@dataclass(frozen=True)
class OpenedInputs:
    """Sources in the order of the inputs, and θ0. `tensors` has the output's names and shapes, in order."""

    sources: tuple[CheckpointSource | AdapterSource, ...]
    base: CheckpointSource | None
    tensors: tuple[TensorInfo, ...]
    config_folder: Path  # whose config.json the output gets
    notes: tuple[str, ...]
    twins: Mapping[str, str]  # see `Alignment`


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
    alignment = align(opened, based=base is not None)
    found = [CheckpointSource(one.path, infos) for one, infos in zip(opened, alignment.matched, strict=True)]
    theta0 = found.pop() if base is not None else None
    first = opened[0]
    cache = FactorCache()
    sources: list[CheckpointSource | AdapterSource] = []
    remaining = iter(found)
    notes = [*alignment.notes]
    if adapters and base is not None:
        notes += [*check_bases(adapters), *base_notes(adapters, base)]
    for path in paths:
        if not is_adapter(path):
            sources.append(next(remaining))
        elif theta0 is not None:
            adapter = Adapter.open(path, opened[-1])
            notes += adapter.notes
            sources.append(AdapterSource(path, adapter, theta0, theta0.tensors, cache))
    tensors = tuple(alignment.matched[0][name] for name in alignment.names)
    tensors = tuple(replace(info, name=name) for info, name in zip(tensors, alignment.names, strict=True))
    check_loads(first, tensors, notes)
    rows = first.info(first.embedding).shape[0] if first.embedding is not None else None
    notes += check_tokenizers(paths, base, rows)
    notes += side_notes(paths)
    return OpenedInputs(tuple(sources), theta0, tensors, first.path, tuple(notes), alignment.twins)


def check_trained(path: Path) -> None:
    """Compares θ0 with what its branches will save, as their merge will, before any of them is trained.

    Raises:
        InputError: a merge of branches of this model would be refused; names the tensor or file.
    """
    base = Checkpoint.open(path)
    known = architecture_of(base.config)
    if known is None:
        return
    own = same_names(list(known.saved), find_layout(base.tensors).names)
    stored = {name: base.tensors[find_layout(base.tensors).names[theirs]] for theirs, name in own.items()}
    made = {
        name: replace(stored[name], shape=shape) if name in stored else TensorInfo(name, "F32", shape, path, 0, 0)
        for name, shape in known.saved.items()
    }
    try:
        align([Checkpoint(path, made, base.config), base], based=True)
    except InputError as error:
        said = f"branches of this model could not be merged: {error.message}"
        raise InputError(said, file=error.file, field=error.field) from None
    check_side_files([path], saved=("tokenizer", "generation_config.json"))


def check_loads(first: Checkpoint, tensors: Sequence[TensorInfo], notes: list[str]) -> None:
    """Compares the output's names with what a loader of its architecture expects.

    Raises:
        InputError: a loader would draw a tensor at random, or refuse its shape.
    """
    shapes = {info.name: info.shape for info in tensors}
    own = {name: shape for name, shape in shapes.items() if not first.tied or name != first.head}
    if own == plain_tensors(first.config):
        return
    known = architecture_of(first.config)
    loading = known.loading(shapes) if known is not None else None
    if known is None or loading is None:
        if adapted := next((name for name in shapes if _ADAPTED.search(name)), None):
            raise InputError(
                "a part of an adapter in a whole model: PEFT's model was saved as it was; save what its "
                "`merge_and_unload()` returns, or the adapter alone",
                file=first.path,
                field=adapted,
            )
        return
    if loading.misshapen:
        name, there, expected = loading.misshapen[0]
        shell = "; an empty shell of DeepSpeed ZeRO-3? gather the weights first" if there == (0,) else ""
        raise InputError(
            f"shape {list(there)}, but its config.json makes it {list(expected)}{shell}", file=first.path, field=name
        )
    if loading.missing:
        spare = sorted(loading.spare)
        instead = f"; it has `{spare[0]}`, which {known.name} does not know" if spare else ""
        count = len(loading.missing)
        said = f"{known.name} needs this tensor ({count} such): a loader would draw it at random{instead}"
        if known.generates:
            raise InputError(said, file=first.path, field=loading.missing[0])
        notes.append(f"{first.path}: `{loading.missing[0]}`: {said}")


@dataclass(frozen=True)
class Alignment:
    """Which tensor of each checkpoint stands for which of the output's. `notes` are differences without harm."""

    names: tuple[str, ...]  # the first checkpoint's own, in its order
    matched: tuple[Mapping[str, TensorInfo], ...]  # a checkpoint each
    twins: Mapping[str, str]  # a tied tensor that is stored, such as a head → the one it is written as
    notes: tuple[str, ...]


def align(checkpoints: Sequence[Checkpoint], *, based: bool = False) -> Alignment:
    """Matches the tensors of all checkpoints with the first one's.

    Tensors that loaders compute or do not know may be missing in some: θ0's own are then carried over, others left out.

    Args:
        based: the last checkpoint is θ0.

    Raises:
        InputError: another architecture or function, a missing or extra tensor, another shape; names the tensor.
    """
    first = checkpoints[0]
    notes: list[str] = []
    for one in checkpoints:
        _check_whole(one)
    for number, other in enumerate(checkpoints[1:], 1):
        _check_architecture(first, other)
        difference = compare_settings(first, other)
        if difference is not None and not (based and number == len(checkpoints) - 1):
            notes.append(difference)
    layouts = [find_layout(one.tensors) for one in checkpoints]
    found = [{name: name for name in first.tensors}]
    for other, theirs in zip(checkpoints[1:], layouts[1:], strict=True):
        if theirs.generation != layouts[0].generation:
            notes.append(
                f"{other.path} has {theirs.generation}, {first.path} {layouts[0].generation}: matched by meaning"
            )
        same = same_names(layouts[0].names, theirs.names)
        found.append({layouts[0].names[same[n]] if n in same else n: own for n, own in theirs.names.items()})
    copies = [_copies(one) for one in checkpoints]
    twins = copies[0]
    for one, names, own in zip(checkpoints, found, copies, strict=True):
        for name in [name for name, stored in names.items() if stored in own]:
            del names[name]
        if twins and not own:
            notes.append(f"{one.path} does not store its tied head: its embeddings stand for it")
        names |= {name: names[source] for name, source in twins.items() if source in names}
    kept = _settle(checkpoints, found, based, notes)
    matched = []
    for one, own in zip(checkpoints, found, strict=True):
        matched.append({n: one.info(own[n]) if n in own else checkpoints[-1].info(found[-1][n]) for n in kept})
    for other, infos in zip(checkpoints[1:], matched[1:], strict=True):
        for name in kept:
            _check_shape(matched[0][name], infos[name], other.path)
            _check_kind(matched[0][name], infos[name], other.path)
    return Alignment(kept, tuple(matched), twins, tuple(notes))


def _copies(one: Checkpoint) -> dict[str, str]:
    """The tensors that are stored again under a second name → the one they are tied to: a head, T5's embeddings."""
    found = {one.head: one.embedding} if one.tied and one.head and one.embedding else {}
    known = architecture_of(one.config) if plain_tensors(one.config) is None else None
    for name, source in known.ties.items() if known is not None else ():
        if name in found or not {name, source} <= one.tensors.keys() or (name == one.head and not one.tied):
            continue
        if _same_bytes(one.info(name), one.info(source)):
            found[name] = source
    return {name: found.get(source, source) for name, source in found.items()}


def _settle(
    checkpoints: Sequence[Checkpoint], found: Sequence[Mapping[str, str]], based: bool, notes: list[str]
) -> tuple[str, ...]:
    """The output's tensors: those of all checkpoints, and θ0's own that a loader does not need.

    Raises:
        InputError: a tensor that matters is not in all of them.
    """
    first = checkpoints[0]
    keys = [*(name for name in first.tensors if name in found[0])]
    keys += [name for names in found[1:] for name in names if name not in keys and name not in found[0]]
    kept: list[str] = []
    carried: list[str] = []
    left: list[str] = []
    for name in dict.fromkeys(keys):
        holders = [one for one, names in zip(checkpoints, found, strict=True) if name in names]
        if len(holders) == len(checkpoints):
            kept.append(name)
        elif all(_spare(one, names[name]) for one, names in zip(checkpoints, found, strict=True) if name in names):
            lent = based and name in found[-1] and not is_computed(name)
            (carried if lent else left).append(name)
        elif name in found[0]:
            lacking = next(one for one, names in zip(checkpoints, found, strict=True) if name not in names)
            raise InputError(f"missing here, but {first.path} has it", file=lacking.path, field=name)
        else:
            raise InputError(f"not in {first.path}", file=holders[0].path, field=name)
    if carried:
        notes.append(f"{len(carried)} tensors (`{carried[0]}` …) are carried over from θ0: training does not save them")
    if left:
        notes.append(
            f"{len(left)} tensors (`{left[0]}` …) are left out: not all inputs have them, and no loader needs them"
        )
    return (*kept, *carried)


def _spare(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a loader computes this tensor by itself, or has no place for it."""
    return name in checkpoint.spare


def _check_whole(one: Checkpoint) -> None:
    """Refuses a checkpoint that contradicts itself.

    Raises:
        InputError: an empty weight, or a stored head that differs from the embeddings it is tied to.
    """
    for name, info in one.tensors.items():
        if info.shape == (0,) and name.endswith(".weight"):
            raise InputError(
                "empty: a shell of DeepSpeed ZeRO-3; gather the weights first (zero_to_fp32.py)",
                file=one.path,
                field=name,
            )
    if one.tied and one.head and one.embedding and not _same_bytes(one.info(one.head), one.info(one.embedding)):
        raise InputError(
            "differs from the input embeddings, though the configuration ties them; set `tie_word_embeddings: false` "
            "in config.json if the head is a weight of its own",
            file=one.path,
            field=one.head,
        )


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


def _check_kind(mine: TensorInfo, theirs: TensorInfo, path: Path) -> None:
    """Whole numbers have no average: they must be equal. Running sums hold them as float64."""
    whole = [info.dtype in WHOLE for info in (mine, theirs)]
    if whole == [True, True] and not _same_bytes(mine, theirs):
        raise InputError(
            f"type {theirs.dtype}, and not what {mine.file.parent} has: whole numbers cannot be averaged",
            file=path,
            field=theirs.name,
        )
    if whole[0] != whole[1] and "F64" not in (mine.dtype, theirs.dtype):
        raise InputError(f"type {theirs.dtype}, but {mine.dtype} in {mine.file.parent}", file=path, field=theirs.name)


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
