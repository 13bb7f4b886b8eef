"""An adapter as a source of a merge: its base with the update added, a few rows at a time (θ_k = θ0 + s B A)."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from merit.base.errors import InputError
from merit.base.files import atomic_dir, sha256_file, write_json
from merit.base.progress import SILENT, Progress
from merit.base.record import Record, fingerprint
from merit.merge.codec import Float64s, Scratch, decode
from merit.merge.record import RECORD, MergeInput
from merit.merge.side_files import check_side_files, check_tokenizers, copy_side_files
from merit.merge.side_notes import base_notes, side_notes
from merit.merge.weights import check_weights, normalised
from merit.models.adapter import CONFIG, WEIGHTS, Adapter, LowRank, check_bases
from merit.models.checkpoint import ITEM_BYTES, Checkpoint, FilePool, TensorInfo
from merit.models.source import weights_fingerprint

if TYPE_CHECKING:
    from merit.merge.inputs import CheckpointSource

_log = logging.getLogger(__name__)
_CACHE_BYTES = 64_000_000  # of factors that several threads use at once

Matrix = NDArray[np.float64]


class FactorCache:
    """Whole factors in float64, shared by threads and adapters; the least recently used go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Path, str], Matrix] = OrderedDict()
        self._bytes = 0

    def get(self, files: FilePool, info: TensorInfo) -> Matrix:
        """The factor `info`, as (rows, columns)."""
        key = (info.file, info.name)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        value = read_rows(files, info, 0, info.shape[0])
        with self._lock:
            if key not in self._known:
                self._known[key] = value
                self._bytes += value.nbytes
            while self._bytes > _CACHE_BYTES and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].nbytes
        return value


@dataclass(frozen=True)
class AdapterSource:
    """An adapter over the base that the merge names. Tensors it does not change are the base's."""

    path: Path
    adapter: Adapter
    base: CheckpointSource
    tensors: Mapping[str, TensorInfo]  # the output's names → the base's tensors
    cache: FactorCache = field(compare=False)

    def read(
        self, files: FilePool, name: str, start: int, out: Float64s, base: Float64s | None, scratch: Scratch
    ) -> None:
        """As `Source.read` says."""
        own = self.tensors[name]
        if (whole := self.adapter.full.get(own.name)) is not None:
            size = ITEM_BYTES[whole.dtype]
            raw = scratch.raw[: out.size * size]
            files.read(whole, start * size, raw)
            decode(raw, whole.dtype, out, scratch)
        elif base is not None:
            np.copyto(out, base)
        else:
            self.base.read(files, name, start, out, None, scratch)
        if (update := self.adapter.updates.get(own.name)) is not None:
            self._add(files, update, own, start, out)

    def expect(self, files: FilePool, name: str, start: int, count: int) -> None:
        """The base is asked for by the merge itself; factors are small."""

    def factors(self, files: FilePool, name: str) -> tuple[Matrix, Matrix] | None:
        """s B (outputs × r) and A (r × inputs) of a matrix's update, r = 0 where there is none; None where it is no
        product of two: DoRA, or a whole tensor that replaces the base's."""
        own = self.tensors[name]
        update = self.adapter.updates.get(own.name)
        if own.name in self.adapter.full or (update is not None and update.magnitude is not None):
            return None
        if update is None:
            outputs, inputs = own.shape
            return np.zeros((outputs, 0)), np.zeros((0, inputs))
        return self.cache.get(files, update.b) * update.scale, self.cache.get(files, update.a)

    def _add(self, files: FilePool, update: LowRank, weight: TensorInfo, start: int, out: Float64s) -> None:
        columns = weight.shape[1]
        first, last = start // columns, -(-(start + out.size) // columns)
        if update.transposed:
            left = self.cache.get(files, update.a)[:, first:last].T
            change = left @ self.cache.get(files, update.b).T
        else:
            change = read_rows(files, update.b, first, last) @ self.cache.get(files, update.a)
        change *= update.scale
        at = start - first * columns
        out += change.reshape(-1)[at : at + out.size]
        if update.magnitude is not None:
            if at or out.size % columns:
                raise InputError("a row with DoRA does not fit the memory budget; give more", field=weight.name)
            rows = out.reshape(-1, columns)
            norms = np.sqrt(np.square(rows).sum(axis=1))
            size = read_rows(files, update.magnitude, 0, update.magnitude.elements).reshape(-1)[first:last]
            rows *= (size / norms)[:, None]


def blas_threads(count: int) -> AbstractContextManager[object]:
    """How many threads BLAS starts below each of ours: more than there are cores, and products were twelve times slower
    on two busy ones."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    return cast(AbstractContextManager[object], threadpool_limits(count, "blas"))


def read_rows(files: FilePool, info: TensorInfo, first: int, last: int) -> Matrix:
    """Rows `first` to `last` of a matrix (or elements of a vector) in float64."""
    count = (last - first) * (info.shape[1] if len(info.shape) > 1 else 1)
    row = count // max(1, last - first)
    size = ITEM_BYTES[info.dtype]
    raw = np.empty(count * size, np.uint8)
    files.read(info, first * row * size, raw)
    out = np.empty(count)
    decode(raw, info.dtype, out, Scratch.make(count if info.dtype == "BF16" else 0))
    return out.reshape(last - first, row)


class AdapterMergeResult(Record):
    """A finished merge of adapters."""

    weights: list[float]  # shares, summing to 1
    ranks: dict[str, int]  # module → rank
    update_norm: float  # ‖Σ w_k Δ_k‖ over all modules, of the exact average
    truncation_error: float  # ‖exact − written‖ / ‖exact‖; 0 where nothing was cut
    worst_module: str | None
    seconds: float
    checksum: str  # SHA-256 of the adapter's weights
    inputs: list[MergeInput]
    base: MergeInput
    rank: int | None  # that was asked for; None: exact
    notes: list[str]


@dataclass(frozen=True)
class _Stack:
    """B (outputs, R) and A (R, inputs) with B A = Σ w_k s_k B_k A_k."""

    b: Matrix
    a: Matrix
    embedding: bool

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


def merge_adapters(
    inputs: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    *,
    base: Path,
    rank: int | None = None,
    progress: Progress = SILENT,
) -> AdapterMergeResult:
    """Averages the updates of LoRA folders over `base` into one LoRA folder, in float32.

    Args:
        rank: the largest rank of a module; None keeps the average exact, at rank Σ r_k.

    Raises:
        InputError: an adapter that is no plain LoRA or rsLoRA (DoRA is no sum of updates: merge it to a whole model),
            bad weights, an output that exists.
    """
    started = time.monotonic()
    shares = normalised(check_weights(weights, len(inputs)))
    if rank is not None and rank < 1:
        raise InputError("a rank is at least 1", field="rank")
    if output.exists():
        raise InputError("exists already; name a new folder, or remove it first", file=output, field="output")
    checkpoint = Checkpoint.open(base)
    adapters = [Adapter.open(path, checkpoint) for path in inputs]
    rows = checkpoint.info(checkpoint.embedding).shape[0] if checkpoint.embedding is not None else None
    sides = (*inputs, base)
    notes = [
        *check_bases(inputs),
        *base_notes(inputs, base),
        *check_tokenizers(inputs, base, rows),
        *side_notes(inputs),
    ]
    notes += [note for adapter in adapters for note in adapter.notes]
    check_side_files(sides)
    for adapter in adapters:
        _check_plain(adapter)
    used = [(adapter, share) for adapter, share in zip(adapters, shares, strict=True) if share]
    with blas_threads(1), atomic_dir(output) as part:
        if len(used) == 1 and (rank is None or max(u.rank for u in used[0][0].updates.values()) <= rank):
            made = _copy(used[0][0], part)
        else:
            made = _write(used, checkpoint, rank, part, progress)
        ranks, norm, lost, worst = made
        if ranks and not norm:
            notes.append("the average of all updates is zero: nothing was trained, or it was not saved")
        copy_side_files(sides, part)
        result = AdapterMergeResult(
            weights=shares,
            ranks=ranks,
            update_norm=norm,
            truncation_error=lost / norm if norm else 0.0,
            worst_module=worst,
            seconds=round(time.monotonic() - started, 3),
            checksum=sha256_file(part / WEIGHTS),
            inputs=[recorded(*item) for item in zip(inputs, weights, shares, strict=True)],
            base=recorded(base, 0.0, 0.0),
            rank=rank,
            notes=notes,
        )
        result.save(part / RECORD)
    for note in notes:
        _log.warning(note)
    return result


def recorded(path: Path, factor: float, share: float) -> MergeInput:
    """How an input is recorded; an adapter's fingerprint covers its settings, too."""
    mark = weights_fingerprint(path)
    if (path / CONFIG).is_file():
        mark = fingerprint(mark, sha256_file(path / CONFIG))
    return MergeInput(path=str(path.absolute()), factor=factor, weight=share, fingerprint=mark)


def difference(one: Adapter, two: Adapter) -> float:
    """‖Δ_1 − Δ_2‖ over all updates and whole tensors."""
    total = 0.0
    with FilePool() as files:
        for name in one.updates.keys() | two.updates.keys():
            parts = [(a.updates[name], sign) for a, sign in ((one, 1.0), (two, -1.0)) if name in a.updates]
            total += _square_norm(_stack(files, parts))
        for name in one.full.keys() | two.full.keys():
            if name not in one.full or name not in two.full:
                return math.inf
            total += float(np.square(_flat(files, one.full[name]) - _flat(files, two.full[name])).sum())
    return math.sqrt(total)


_Made = tuple[dict[str, int], float, float, str | None]


def _check_plain(adapter: Adapter) -> None:
    for update in adapter.updates.values():
        if update.magnitude is not None:
            raise InputError(
                "DoRA: its update is no low-rank matrix; merge to a whole model instead",
                file=adapter.path / CONFIG,
                field="use_dora",
            )


def _copy(adapter: Adapter, part: Path) -> _Made:
    """Copies the only adapter, byte for byte."""
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter.path / name, part / name)
    squares = 0.0
    with FilePool() as files:
        for update in adapter.updates.values():
            squares += _square_norm(_stack(files, [(update, 1.0)]))
    return {adapter.modules[name]: u.rank for name, u in adapter.updates.items()}, math.sqrt(squares), 0.0, None


def _write(
    used: list[tuple[Adapter, float]], base: Checkpoint, rank: int | None, part: Path, progress: Progress
) -> _Made:
    names = sorted({name for adapter, _ in used for name in adapter.updates})
    modules = {name: adapter.modules[name] for adapter, _ in used for name in adapter.updates}
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    ranks: dict[str, int] = {}
    total, lost, worst = 0.0, 0.0, (0.0, "")
    with FilePool() as files, progress.bar("merge adapters", total=len(names), unit="module") as bar:
        for done, name in enumerate(names, 1):
            parts = [(a.updates[name], share) for a, share in used if name in a.updates]
            if len({update.transposed for update, _ in parts}) > 1:
                raise InputError("some of the adapters store this layer transposed, others do not", field=modules[name])
            stack = _stack(files, parts)
            total += _square_norm(stack)
            if rank is not None and stack.rank > rank:
                stack, cut = _truncate(stack, rank)
                lost += cut
                worst = max(worst, (cut, modules[name]))
            ranks[modules[name]] = stack.rank
            ends = ("lora_embedding_A", "lora_embedding_B") if stack.embedding else ("lora_A.weight", "lora_B.weight")
            for end, factor in zip(ends, (stack.a, stack.b), strict=True):
                tensors[f"base_model.model.{modules[name]}.{end}"] = np.ascontiguousarray(factor, np.float32)
            bar.update(done)
        tensors |= _whole_tensors(files, used, base)
    save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
    write_json(part / CONFIG, _config([adapter for adapter, _ in used], ranks))
    return ranks, math.sqrt(total), math.sqrt(lost), worst[1] or None


def _stack(files: FilePool, parts: Sequence[tuple[LowRank, float]]) -> _Stack:
    factors_a, factors_b = [], []
    for update, share in parts:
        factors_a.append(_whole(files, update.a))
        factors_b.append(_whole(files, update.b) * (share * update.scale))
    return _Stack(np.hstack(factors_b), np.vstack(factors_a), "lora_embedding" in parts[0][0].a.name)


def _whole(files: FilePool, info: TensorInfo) -> Matrix:
    value = read_rows(files, info, 0, info.shape[0])
    if not np.isfinite(value).all():
        raise InputError("NaN or infinity: a diverged or damaged input", file=info.file, field=info.name)
    return value


def _square_norm(stack: _Stack) -> float:
    """‖B A‖² = Σ (BᵀB ∘ AAᵀ), without forming B A."""
    return max(0.0, float(((stack.b.T @ stack.b) * (stack.a @ stack.a.T)).sum()))


def _truncate(stack: _Stack, rank: int) -> tuple[_Stack, float]:
    """The nearest update of that rank (Eckart and Young), and the squared norm of what is lost."""
    q_b, r_b = np.linalg.qr(stack.b)
    q_a, r_a = np.linalg.qr(stack.a.T)
    left, values, right = np.linalg.svd(r_b @ r_a.T)
    roots = np.sqrt(values[:rank])
    b = q_b @ (left[:, :rank] * roots)
    a = (roots[:, None] * right[:rank]) @ q_a.T
    lost: Float64s = values[rank:]
    return _Stack(b, a, stack.embedding), float(np.square(lost).sum())


def _whole_tensors(
    files: FilePool, used: list[tuple[Adapter, float]], base: Checkpoint
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """modules_to_save and biases: whole tensors, averaged as such; an adapter without one has the base's."""
    found = {}
    for name, info in {name: info for adapter, _ in used for name, info in adapter.full.items()}.items():
        total = sum(_flat(files, adapter.full.get(name, base.info(name))) * share for adapter, share in used)
        found[info.name] = np.ascontiguousarray(np.reshape(total, info.shape), np.float32)
    return found


def _flat(files: FilePool, info: TensorInfo) -> Matrix:
    return _whole(files, info).reshape(-1)


def _config(adapters: Sequence[Adapter], ranks: dict[str, int]) -> dict[str, object]:
    """The first adapter's settings, with α = r everywhere, so that B A counts as it is."""
    common = max(set(ranks.values()), key=list(ranks.values()).count) if ranks else 1
    others = {f"^{_escaped(module)}": rank for module, rank in sorted(ranks.items()) if rank != common}
    if len(biases := {str(adapter.config.get("bias", "none")) for adapter in adapters}) > 1:
        raise InputError(f"the adapters differ: {', '.join(sorted(biases))}", file=adapters[1].path, field="bias")
    whole = sorted({module for adapter in adapters for module in adapter.config.get("modules_to_save") or ()})
    config: dict[str, object] = {
        **adapters[0].config,
        "modules_to_save": whole or None,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "target_modules": sorted(ranks),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return config


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")
