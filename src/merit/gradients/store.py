"""The store of sketches: flat float32 files and small JSON, readable with NumPy alone. No torch here.

gradients/info.json            the sketch's rule, the model's fingerprint, where each parameter lies in a row
gradients/rows/NAME.f32        2 × numbers float32, little-endian: the gradient sum of all its calibration examples,
                               then that of the first half-set alone
gradients/rows/NAME.json       tokens, losses, examples of the halves; written last, so it marks the row as whole
gradients/hashed/              the same again, of rows hashed to 65,536 numbers: what needs the halves reads these
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from merit.base.errors import InputError
from merit.base.files import atomic_path, safe_name, sha256_file
from merit.base.kept import Files, Kept, kept
from merit.base.record import Sealed
from merit.gradients.sketch import SketchLayout, SketchSpec

logger = logging.getLogger(__name__)

HASHED = 65_536  # numbers of a companion's row
_FLOAT = np.dtype("<f4")
# A file of rows → its state when it was hashed, and its SHA-256: it is looked at many times, and hashed once a process.
_hashed: dict[Path, tuple[tuple[int, int, int], str]] = {}


class StoreInfo(Sealed):
    """`info.json`."""

    model_fingerprint: str
    precision: str
    layout: SketchLayout

    @property
    def spec(self) -> SketchSpec:
        return self.layout.spec


class RowInfo(Sealed):
    """One dataset's row. Pairs are per half-set."""

    name: str
    fingerprint: str  # of all that the row depends on
    numbers: int
    examples: tuple[int, int]
    tokens: tuple[int, int]  # supervised tokens
    losses: tuple[float, float]  # summed −log p
    sha256: str = ""  # of the row's file
    rows: list[int] = Field(default_factory=list)  # of data/NAME.arrow, in order of use, alternating between the halves

    @property
    def files(self) -> dict[str, str]:
        """The row's file → SHA-256."""
        return {f"{safe_name(self.name)}.f32": self.sha256}

    @property
    def loss(self) -> float:
        """Mean loss a supervised token."""
        return sum(self.losses) / sum(self.tokens)

    def plus(self, other: RowInfo) -> RowInfo:
        """This row with the counts of `other` added: the two sums together."""
        pairs = {
            key: tuple(a + b for a, b in zip(getattr(self, key), getattr(other, key), strict=True))
            for key in ("examples", "tokens", "losses")
        }
        return self.model_copy(update=pairs | {"rows": [*other.rows, *self.rows]})


class SketchStore:
    """The sketches of a run, one row a dataset."""

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def create(cls, folder: Path, info: StoreInfo) -> SketchStore:
        """A store for `info` in `folder`; what is there already is kept, row by row, as far as it matches."""
        info.save(folder / "info.json")
        return cls(folder, info)

    @classmethod
    def open(cls, folder: Path) -> SketchStore:
        """Opens a store to read.

        Raises:
            InputError: there is none, or it is damaged.
        """
        return cls(folder, StoreInfo.load(folder / "info.json"))

    @classmethod
    def matching(cls, folder: Path, spec: SketchSpec, model_fingerprint: str, precision: str) -> SketchStore | None:
        """The store in `folder`, if it holds such sketches of such a model."""
        depends = {"spec": spec, "model_fingerprint": model_fingerprint, "precision": precision}
        info = kept(folder / "info.json", StoreInfo, depends).record
        return cls(folder, info) if info is not None else None

    @property
    def numbers(self) -> int:
        """Float32 numbers kept a gradient (a row holds twice as many)."""
        return self.info.layout.numbers

    @property
    def row_bytes(self) -> int:
        return 2 * self.numbers * _FLOAT.itemsize

    def path(self, name: str) -> Path:
        """The flat file of dataset `name`."""
        return self.folder / "rows" / f"{safe_name(name)}.f32"

    def _marker(self, name: str) -> Path:
        return self.path(name).with_suffix(".json")

    def find(self, name: str, fingerprints: Iterable[str]) -> RowInfo | None:
        """The row of `name` if it is whole and has one of `fingerprints`; else None, with a line in the log."""
        found = self._kept(name, fingerprint=frozenset(fingerprints))
        if found.changed:
            logger.info("%s: its sketch belongs to another model, sketch or data; measuring it again", name)
        elif found.damaged:
            logger.warning("%s: its sketch is damaged or missing; measuring it again", name)
        elif found.why:
            logger.warning("%s: its sketch's description is damaged; measuring it again", name)
        return found.record

    def _kept(self, name: str, **depends: Any) -> Kept[RowInfo]:
        depends |= {"name": name, "numbers": self.numbers}
        return kept(self._marker(name), RowInfo, depends, Files(self.folder / "rows", _hash_once))

    @property
    def companion(self) -> SketchStore:
        """The store of the same rows hashed to fewer numbers; this store itself, where its rows are short already."""
        if self.numbers <= 4 * HASHED:
            return self
        spec = self.info.layout.spec.model_copy(update={"hashed": HASHED})
        layout = self.info.layout.model_copy(update={"spec": spec})
        return SketchStore(self.folder / "hashed", self.info.model_copy(update={"layout": layout}))

    def relabel(self, row: RowInfo) -> None:
        """Replaces the description of a row whose numbers stay."""
        for part in self._parts():
            known = RowInfo.load(part._marker(row.name))
            row.model_copy(update={"numbers": part.numbers, "sha256": known.sha256}).save(part._marker(row.name))

    def _parts(self) -> list[SketchStore]:
        return [self] if self.companion is self else [self.companion, self]

    def add(self, row: RowInfo, sums: NDArray[np.float32]) -> None:
        """Adds the half sums of further examples to a row; `row` describes both together."""
        for part in self._parts():
            layout = part.info.layout
            new = layout.hash(sums, layout.spec.hashed) if layout.spec.hashed else sums
            part._put(row.model_copy(update={"numbers": part.numbers}), part.read_halves(row.name) + new)

    def write(self, row: RowInfo, sums: NDArray[np.float32]) -> None:
        """Stores the half sums (2 × width, float32) of a dataset, hashed if the spec says so; the marker comes last."""
        layout, companion = self.info.layout, self.companion
        if companion is not self:
            companion.info.save(companion.folder / "info.json")
            companion.write(row.model_copy(update={"numbers": companion.numbers}), sums)
        if layout.spec.hashed:
            sums = layout.hash(sums, layout.spec.hashed)
        self._put(row, sums)

    def _put(self, row: RowInfo, sums: NDArray[np.float32]) -> None:
        self._marker(row.name).unlink(missing_ok=True)
        numbers = np.stack([sums[0] + sums[1], sums[0]]).astype(_FLOAT, copy=False)
        with atomic_path(self.path(row.name)) as part:
            numbers.tofile(part)
        row.model_copy(update={"sha256": hashlib.sha256(numbers.data).hexdigest()}).save(self._marker(row.name))

    def row(self, name: str) -> RowInfo:
        """What is known of the row of `name`.

        Raises:
            InputError: the row is missing, damaged or truncated.
        """
        row = self._kept(name).record
        if row is None:
            raise InputError("a missing or damaged sketch; run `merit conflict` again", file=self.path(name))
        return row

    def rows(self, names: Sequence[str]) -> list[RowInfo]:
        return [self.row(name) for name in names]

    def read_total(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fills `out` with the gradient sum of `name` from column `start` on; reads no more than that."""
        self._read(name, start, out)

    def read_halves(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Columns `start:stop` of the half sums of `name`, (2 × columns) float32."""
        stop = self.numbers if stop is None else stop
        out = np.empty((2, stop - start), dtype=_FLOAT)
        self._read(name, start, out[1])
        self._read(name, self.numbers + start, out[0])
        out[1] -= out[0]
        return out

    def _read(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        try:
            handle = os.open(self.path(name), os.O_RDONLY)
        except FileNotFoundError:
            raise InputError("no such sketch; run `merit conflict` again", file=self.path(name)) from None
        try:
            _pread(handle, out, start * _FLOAT.itemsize, self.path(name))
        finally:
            os.close(handle)


def _hash_once(path: Path) -> str:
    info = path.stat()
    state = (info.st_ino, info.st_mtime_ns, info.st_size)
    if path not in _hashed or _hashed[path][0] != state:
        _hashed[path] = state, sha256_file(path)
    return _hashed[path][1]


def _pread(handle: int, out: NDArray[np.float32], offset: int, path: Path) -> None:
    """Fills `out` from the file; pread and not a memory map, so that file pages do not count as ours."""
    view = out.view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if count == 0:
            raise InputError("a truncated sketch; run `merit conflict` again", file=path)
        done += count
