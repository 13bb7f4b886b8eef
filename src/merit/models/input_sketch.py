"""The sketch of a branch's layer inputs: a side file of its checkpoint, which a merge by curvature reads.

For every linear layer, G = mean of x xᵀ over the inputs x that the branch's own training data give it, d × d, is kept
as G ≈ SᵀS + diag(ρ): S has the largest directions of G as its rows, and ρ is what they leave of its diagonal. So trace
and diagonal are those of G.

What is stored are the diagonal and S in eight bits: S_ij = scale_i · rows_ij · √diagonal_j. Inputs differ in size by
orders of magnitude; divided by their own sizes, a direction's numbers are alike, and a byte is enough for each. Twice
the directions in bytes are better than half of them in float16 (`benchmarks/README.md`, "Sketches").

The file is in a folder of its own, so that nothing that loads the checkpoint takes it for weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from merit.base.errors import InputError
from merit.base.files import atomic_path
from merit.base.record import Record
from merit.models.checkpoint import Checkpoint, FilePool, TensorInfo, read_entries, read_notes
from merit.models.layout import find_layout
from merit.models.source import weights_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "curvature"
NAME = "inputs.safetensors"
_FORMAT = "merit.inputs.1"
_NOTE = "merit"  # the key of the header's note that holds the facts
_TYPES = {"rows": "I8", "scale": "F32", "diagonal": "F32"}
_ITEM = {"I8": 1, "F32": 4}  # bytes
_LARGEST = 127
_ENTRY = 96  # bytes that the header has for one tensor, at most


def sketch_file(checkpoint: Path) -> Path:
    """Where the sketch of a checkpoint is."""
    return checkpoint / FOLDER / NAME


class SketchFacts(Record):
    """What a sketch says of itself, in the file's header.

    Attributes:
        branch: fingerprint of the branch's spec.
        weights: fingerprint of the checkpoint that it was measured on.
        wanted: training examples that were asked for.
        examples: those that were measured: about as many, equally many of every dataset.
        tokens: of these examples.
        layers: parameter name of a linear layer → the name of its inputs. Layers with the same inputs share them.
    """

    format: str = _FORMAT
    branch: str
    weights: str
    wanted: int
    examples: int
    tokens: int
    layers: dict[str, str]


@dataclass(frozen=True)
class LowRank:
    """G ≈ SᵀS + diag(ρ), as it is stored.

    Attributes:
        rows: (r, d) int8 and
        scale: (r,) float32, with S_ij = scale_i · rows_ij · √diagonal_j.
        diagonal: (d,) float32, of G.
    """

    rows: Tensor
    scale: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, gram: Tensor, rank: int) -> LowRank:
        """The sketch of one Gram matrix: its diagonal, and its `rank` largest eigenvectors.

        Args:
            gram: (d, d), symmetric and positive semi-definite, of any floating type.
        """
        import torch

        gram = (gram.cpu() if gram.device.type == "mps" else gram).double()  # Apple's GPUs have no float64
        values, vectors = torch.linalg.eigh(gram)
        top = slice(len(gram) - rank, None)
        rows = (vectors[:, top] * values[top].clamp(min=0).sqrt()).T.flip(0)
        diagonal = gram.diagonal().float()
        sizes = diagonal.sqrt()
        rows = torch.where(sizes > 0, rows / sizes, 0)
        scale = (rows.abs().amax(dim=1) / _LARGEST).float()
        rows = torch.where(scale[:, None] > 0, rows / scale[:, None], 0)
        # In float32 the scale may have become a little smaller.
        return cls(rows.round().clamp(-_LARGEST, _LARGEST).to(torch.int8).cpu(), scale.cpu(), diagonal.cpu())

    def rows_and_rest(self) -> tuple[Tensor, Tensor]:
        """S (r, d) and ρ (d,), float64."""
        diagonal = self.diagonal.double()
        rows = self.rows.double() * self.scale.double()[:, None] * diagonal.sqrt()
        return rows, (diagonal - rows.square().sum(0)).clamp(min=0)


def rank_for(widths: Mapping[str, int], layers: int, budget: int) -> int:
    """The rank at which a sketch takes at most `budget` bytes; 0 if there is no room for any direction.

    Args:
        widths: name of the inputs → d. No rank is above d.
        layers: how many layers the header names.
    """
    fixed = sum(_ITEM["F32"] * width + len(_TYPES) * _ENTRY for width in widths.values()) + layers * _ENTRY + 1024
    low, high = 0, max(widths.values(), default=0)
    while low < high:
        rank = (low + high + 1) // 2
        size = sum(min(rank, width) * (_ITEM["I8"] * width + _ITEM["F32"]) for width in widths.values())
        low, high = (rank, high) if fixed + size <= budget else (low, rank - 1)
    return low


def write_sketch(checkpoint: Path, facts: SketchFacts, inputs: Mapping[str, LowRank]) -> Path:
    """Writes the sketch of a checkpoint in one rename, and returns its path.

    Args:
        inputs: name of the inputs, as in `facts.layers` → their sketch.
    """
    from safetensors.torch import save_file

    file = sketch_file(checkpoint)
    tensors = {f"{name}.{part}": getattr(item, part) for name, item in inputs.items() for part in _TYPES}
    note = json.dumps(facts.model_dump(mode="json"), separators=(",", ":"))
    with atomic_path(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {_NOTE: note})
    return file


def read_facts(checkpoint: Path) -> SketchFacts | None:
    """What the checkpoint's sketch says of itself; None if it has no sketch.

    Raises:
        InputError: the file is damaged, or no sketch.
    """
    file = sketch_file(checkpoint)
    if not file.exists():
        return None
    try:
        facts = SketchFacts.model_validate_json(read_notes(file).get(_NOTE, "{}"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        raise InputError(f"not a sketch of a branch's inputs: {first['msg']}", file=file, field=field) from None
    if facts.format != _FORMAT:
        raise InputError(f"has the format {facts.format[:40]!r}, not {_FORMAT!r}", file=file, field="format")
    return facts


@dataclass(frozen=True)
class InputSketch:
    """A checkpoint's sketch, opened: headers are read, the rest stays on disk until it is asked for."""

    file: Path
    facts: SketchFacts
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, checkpoint: Path, *, branch: str | None = None) -> InputSketch | None:
        """The sketch of a checkpoint; None if it has none.

        Args:
            branch: fingerprint of the branch's spec, where that is known.

        Raises:
            InputError: the file is damaged, or was measured on other weights or for another branch.
        """
        facts = read_facts(checkpoint)
        if facts is None:
            return None
        file = sketch_file(checkpoint)
        if facts.weights != weights_fingerprint(checkpoint):
            raise InputError("was measured on other weights than those beside it; remove it", file=file)
        if branch is not None and facts.branch != branch:
            raise InputError("is the sketch of another branch; remove it", file=file)
        tensors, weights = _tensors(file), Checkpoint.open(checkpoint).tensors
        for layer, inputs in facts.layers.items():
            found = [tensors.get(f"{inputs}.{part}") for part in _TYPES]
            rows, scale, diagonal = found
            if rows is None or scale is None or diagonal is None:
                raise InputError("damaged: a part of these inputs is missing", file=file, field=inputs)
            types = tuple(info.dtype for info in (rows, scale, diagonal))
            fits = len(rows.shape) == 2 and scale.shape == rows.shape[:1] and diagonal.shape == rows.shape[1:]
            if types != tuple(_TYPES.values()) or not fits:
                raise InputError("damaged: its parts do not fit together", file=file, field=inputs)
            if layer not in weights or weights[layer].shape[1:] != diagonal.shape:
                raise InputError("damaged: the checkpoint has no linear layer with such inputs", file=file, field=layer)
        return cls(file, facts, tensors)

    def of(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        """S (r, d) and ρ (d,), float64, with G ≈ SᵀS + diag(ρ) of the layer that `parameter` is the weight of.

        None if it is the weight of no linear layer that the branch's data reach.

        Args:
            parameter: its name in the checkpoint.

        Raises:
            InputError: numbers that no Gram matrix has.
        """
        inputs = self.facts.layers.get(parameter)
        if inputs is None:
            return None
        parts = LowRank(*(self._read(f"{inputs}.{part}") for part in _TYPES))
        found = parts.rows_and_rest()
        if not all(bool(part.isfinite().all()) for part in found):  # a negative diagonal has no root
            raise InputError("damaged: not the numbers of a Gram matrix", file=self.file, field=inputs)
        return found

    def width(self, parameter: str) -> int | None:
        """d of the layer that `parameter` is the weight of; None as in `of`. Nothing is read."""
        inputs = self.facts.layers.get(parameter)
        return None if inputs is None else self.tensors[f"{inputs}.diagonal"].shape[0]

    def whole(self) -> dict[str, LowRank]:
        """All of it, in memory."""
        names = dict.fromkeys(self.facts.layers.values())
        return {name: LowRank(*(self._read(f"{name}.{part}") for part in _TYPES)) for name in names}

    def carry(self, target: Path, branch: str) -> None:
        """Writes this sketch beside a copy of the same model, whose files and names may differ.

        Args:
            target: the copy, a checkpoint.
            branch: fingerprint of the spec of the branch that it becomes.
        """
        theirs = find_layout(Checkpoint.open(self.file.parents[1]).tensors).names
        own = {theirs[name]: own for name, own in find_layout(Checkpoint.open(target).tensors).names.items()}
        layers = {own[layer]: inputs for layer, inputs in self.facts.layers.items()}
        update = {"branch": branch, "weights": weights_fingerprint(target), "layers": layers}
        write_sketch(target, self.facts.model_copy(update=update), self.whole())

    def _read(self, name: str) -> Tensor:
        import torch

        info = self.tensors[name]
        out = torch.empty(info.shape, dtype=torch.int8 if info.dtype == "I8" else torch.float32)
        if info.nbytes:
            with FilePool() as files:
                files.read(info, 0, out.reshape(-1).view(torch.uint8).numpy())
        return out


def _tensors(file: Path) -> dict[str, TensorInfo]:
    """Where the parts lie. A checkpoint's reader would refuse their type.

    Raises:
        InputError: the header is damaged, or the file was cut short.
    """
    entries, data, size = read_entries(file)
    found, end = {}, 0
    for name, entry in entries.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and 0 <= number < 2**40 for number in (*shape, start, stop))
            if not whole or stop - start != math.prod(shape) * _ITEM[dtype]:
                raise ValueError
        except (TypeError, LookupError, ValueError):
            raise InputError("damaged header", file=file, field=name) from None
        found[name] = TensorInfo(name, dtype, shape, file, data + start, stop - start)
        end = max(end, stop)
    if data + end != size:
        raise InputError(f"damaged: the header describes {data + end} bytes, the file has {size}", file=file)
    return found
