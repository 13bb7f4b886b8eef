"""Measures what a branch's linear layers are given on the branch's own data, and leaves a sketch of it.

A merge by curvature needs the Gram matrix G = mean of x xᵀ of every linear layer's inputs x, in every branch. The
branch's job measures it after training, where the data are, and leaves an `InputSketch` beside the weights. So the
merge needs no data and no model.

Layers that are given the same tensor (query, key and value; gate and up) have one Gram. Grams are measured exactly, as
many at a time as fit into memory, and each is then cut down to its largest directions.
"""

from __future__ import annotations

import gc
import logging
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merit.base.errors import InputError, StageError
from merit.base.files import write_text
from merit.base.kept import checksums
from merit.base.record import fingerprint
from merit.compute.batches import length_batches
from merit.compute.losses import supervised_nll
from merit.config.sections import CURVATURE_BATCH_TOKENS, GRAM_BYTES, SKETCH_SHARE
from merit.data.example import Encoded
from merit.models.checkpoint import Checkpoint
from merit.models.input_sketch import LowRank, SketchFacts, rank_for, write_sketch
from merit.models.layout import find_layout
from merit.models.linear import linear_layers
from merit.models.loading import best_device, load_model
from merit.models.source import weights_fingerprint
from merit.run.layout import BranchDir, RunDir
from merit.train.rows import training_rows
from merit.train.spec import BranchResult, BranchSpec, MeasureSpec, is_measured, trained_branch

_DOUBLE = 8  # bytes
_log = logging.getLogger(__name__)
Hook = Callable[[str, Tensor], None]


def measure_branch(run: RunDir, branch: BranchDir) -> BranchResult:
    """Measures the inputs of a trained branch as its measure.json says, unless it has that sketch, and marks it done.

    It can be repeated: a call that was killed leaves nothing, and the next one measures again.

    Raises:
        InputError: the branch is not trained; or its files, or its data, are damaged.
        StageError: its inputs are not finite: it has diverged.
    """
    spec, wanted = BranchSpec.load(branch.spec), MeasureSpec.load(branch.measure).examples
    mark = fingerprint(spec)
    result = trained_branch(branch, mark)
    if result is None:
        raise InputError("this branch is not trained, so it cannot be measured", file=branch.root)
    if not is_measured(branch, mark, wanted):
        rows = training_rows(run.root, spec, wanted)
        _log.info("branch %d: measuring its layers' inputs on %d training examples", spec.branch, len(rows))
        file = _measure(branch.checkpoint, spec, rows, wanted)
        result = result.model_copy(update={"files": result.files | checksums(branch.root, [file])})
        result.save(branch.done)
        branch.trained.unlink(missing_ok=True)
        if spec.is_last:  # otherwise the next round goes on from it
            shutil.rmtree(branch.training_state, ignore_errors=True)
    write_text(branch.measured, "")
    return result


def _measure(checkpoint: Path, spec: BranchSpec, rows: Sequence[Encoded], wanted: int) -> Path:
    """Writes the sketch of a branch's checkpoint; returns its path."""
    stored = Checkpoint.open(checkpoint)
    weights = stored.elements * torch.float32.itemsize
    gc.collect()  # what is left of a trainer in this process
    model = load_model(
        checkpoint,
        trust_remote_code=spec.model.trust_remote_code,
        freeze=spec.model.freeze,
        device=_device(weights),
    ).eval()
    groups = shared_inputs(model, rows)
    names = {str(number): group for number, group in enumerate(groups)}
    layers = linear_layers(model)
    widths = {name: layers[group[0]].in_features for name, group in names.items()}
    rank = rank_for(widths, sum(map(len, groups)), round(SKETCH_SHARE * stored.nbytes))
    # Gradients and moments, which took three times the weights, are gone.
    grams = input_grams(model, rows, groups, max(GRAM_BYTES, weights))
    inputs = {name: LowRank.of(gram, min(rank, len(gram))) for name, gram in zip(names, grams, strict=True)}
    own = stored_names(model, stored)
    facts = SketchFacts(
        branch=fingerprint(spec),
        weights=weights_fingerprint(checkpoint),
        wanted=wanted,
        examples=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        layers={own[layer]: name for name, group in names.items() for layer in group if layer in own},
    )
    return write_sketch(checkpoint, facts, inputs)


def stored_names(model: nn.Module, stored: Checkpoint) -> dict[str, str]:
    """Name of a parameter of `model` → its name in the checkpoint, where old ones spell it in another way."""
    common = find_layout(name for name, _ in model.named_parameters()).names
    theirs = find_layout(stored.tensors).names
    return {own: theirs[name] for name, own in common.items() if name in theirs}


def _device(weights: int) -> torch.device:
    """The best device, if a model of so many bytes, which may have been sharded over several, fits beside its Grams."""
    best = best_device()
    if best.type == "cuda":
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info(best)[0] < 1.2 * (weights + max(GRAM_BYTES, weights)):
            return torch.device("cpu")
    return best


def input_grams(
    model: nn.Module, rows: Sequence[Encoded], groups: Sequence[tuple[str, ...]], memory: int
) -> Iterator[Tensor]:
    """The mean of x xᵀ over the inputs x of every group of `shared_inputs`, in order.

    Each is (d, d) float64 on the model's device; float32 where that has no float64.

    Every token of an example counts, whether it is supervised or not. Rows are run without padding, whose inputs would
    count as data.

    Args:
        memory: bytes for the Grams that are measured at the same time; one larger than that is measured alone. Each
            pass over the examples measures as many as fit.

    Raises:
        StageError: a Gram is not finite: the branch has diverged.
    """
    layers, left = linear_layers(model), [group[0] for group in groups]
    while left:
        now, room = [left.pop(0)], memory
        room -= _nbytes(layers[now[0]])
        while left and _nbytes(layers[left[0]]) <= room:
            room -= _nbytes(layers[left[0]])
            now.append(left.pop(0))
        sums = _sums(model, {name: layers[name] for name in now}, rows)
        for name in now:
            total, tokens = sums.pop(name)
            mean = total / tokens
            if not bool(mean.isfinite().all()):
                raise StageError(f"the inputs of {name} are not finite: a diverged branch")
            yield mean


def _nbytes(layer: nn.Linear) -> int:
    return _DOUBLE * layer.in_features**2


def shared_inputs(model: nn.Module, rows: Sequence[Encoded]) -> list[tuple[str, ...]]:
    """The parameter names of the trained linear layers that the examples reach, in the order in which these run. Layers
    that are given the same tensor are together.

    A layer that runs more than once in a forward pass stays alone: each run may have inputs of its own.
    """
    layers = {name: layer for name, layer in linear_layers(model).items() if layer.weight.requires_grad}
    leaders: dict[str, str] = {}
    runs: Counter[str] = Counter()
    last: dict[str, weakref.ref[Tensor]] = {}  # the layer that was given it first → the newest input

    def look(name: str, x: Tensor) -> None:
        runs[name] += 1
        leader = next((other for other, seen in last.items() if seen() is x), name)
        leaders.setdefault(name, leader)
        if leader == name:
            last.clear()  # whoever shares this input runs before the next one does, or is measured alone
            last[name] = weakref.ref(x)

    batches = _batches(rows)
    first = next(batches)
    with _watched(layers, look), torch.no_grad():
        supervised_nll(model, first)
    several = {name for name, count in runs.items() if count > 1}
    found: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        found.setdefault(name if {name, leader} & several else leader, []).append(name)
    # What only other examples reach (experts, the vision tower) stays alone.
    unreached: set[str] = set(layers) - set(leaders)
    with _watched({name: layers[name] for name in unreached}, lambda name, _: unreached.discard(name)), torch.no_grad():
        for batch in batches if unreached else ():
            supervised_nll(model, batch)
    left = set(layers) - set(leaders) - unreached
    return [*map(tuple, found.values()), *((name,) for name in layers if name in left)]


def _sums(model: nn.Module, layers: Mapping[str, nn.Linear], rows: Sequence[Encoded]) -> dict[str, tuple[Tensor, int]]:
    """Σ x xᵀ of every layer's inputs, and how many there were. Products are float32, their sums float64."""
    totals: dict[str, Tensor] = {}
    tokens: Counter[str] = Counter()

    def add(name: str, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1]).float()
        exact = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        product = (x.T @ x).to(exact)
        if name in totals:
            totals[name] += product
        else:
            totals[name] = product
        tokens[name] += len(x)

    with _watched(layers, add), torch.no_grad():
        for batch in _batches(rows):
            supervised_nll(model, batch)
    return {name: (total, tokens[name]) for name, total in totals.items()}


@contextmanager
def _watched(layers: Mapping[str, nn.Linear], tell: Hook) -> Iterator[None]:
    """Inside, `tell` gets the name and the input of every layer that runs."""

    def watch(name: str) -> Any:
        return lambda module, inputs: tell(name, inputs[0])

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    lengths = [len(row.input_ids) for row in rows]
    for batch in length_batches(lengths, CURVATURE_BATCH_TOKENS, equal=True):
        yield [rows[index] for index in batch]
