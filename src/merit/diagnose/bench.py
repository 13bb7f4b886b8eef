"""What the checks of one diagnosis share: one loaded model, the examples, and where results go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.logging import get_logger
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.compute.nll import TokenRow
from merit.config.calibration import CalibrationConfig
from merit.config.checks import CheckName
from merit.config.diagnose import DiagnoseConfig
from merit.data.example import Encoded
from merit.data.store import EncodedDataset, calibration_rows
from merit.diagnose.aligned import Aligned
from merit.diagnose.calibration import calibration
from merit.diagnose.connectivity import connectivity, segment_pairs
from merit.diagnose.curvature import curvature
from merit.diagnose.displacement import Moves, displacement, measure_moves
from merit.diagnose.gain import merging_gain
from merit.diagnose.journal import Journal
from merit.diagnose.landscape import landscape
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.models import BASE, JOINT, MERGE, Models
from merit.diagnose.perturbation import perturbation
from merit.diagnose.plane import Plane
from merit.diagnose.records import RESULTS, Check
from merit.diagnose.trajectory import trajectories
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec
from merit.models.loading import Precision
from merit.run.layout import RunDir

_log = get_logger(__name__)


@dataclass(frozen=True)
class Conflict:
    """What the conflict stage found and was told."""

    similarity: NDArray[np.float64]  # (T, T) cosines, in the mixture's order
    tokens: Mapping[str, int]  # planned, by dataset
    axes: int
    centre: bool
    calibration: CalibrationConfig


@dataclass
class Bench:
    """A diagnosis of one set of models.

    Attributes:
        load: gives θ0 in float32; called only if a check needs it.
        names: of `datasets`, in the mixture's order.
        mark: fingerprint of weights and data.
    """

    run: RunDir
    models: Models
    load: Callable[[], Any]
    names: Sequence[str]
    datasets: Sequence[EncodedDataset]
    config: DiagnoseConfig
    mark: str
    batch_tokens: int
    precision: Precision
    seed: int
    progress: Progress = SILENT
    conflict: Conflict | None = None

    def check(self, name: CheckName, *, redo: bool = False) -> Check:
        """The result of a check: as it is stored, if nothing that it depends on has changed, else measured now.

        Raises:
            InputError: the models do not fit together.
            StageError: a loss is not finite.
        """
        self.models.check()
        kind, path = RESULTS[name], self.run.diagnostic(name)
        depends = self._depends(name)
        try:
            stored = kind.load(path)
        except InputError:
            stored = None
        if stored is not None and stored.fingerprint == depends and not redo:
            _log.info("%s: unchanged, kept", name)
            return stored
        journal = Journal(self.run.diagnostic_progress(name), depends)
        started = time.monotonic()
        result = _RUN[name](self, journal)
        seconds = round(time.monotonic() - started, 3)
        result = result.model_copy(update={"fingerprint": depends, "seconds": seconds})
        result.save(path)
        journal.close()
        return result

    @cached_property
    def live(self) -> LiveModel:
        return LiveModel(self.load(), self.models.folders)

    @cached_property
    def held_out(self) -> LossSet:
        return self._losses(held_out=True)

    @cached_property
    def train(self) -> LossSet:
        return self._losses(held_out=False)

    @cached_property
    def moves(self) -> Moves:
        # Headers and weights on disk are enough: no model is loaded for it.
        return measure_moves(Aligned(self.models.folders), self.progress)

    @staticmethod
    def calibration_examples(dataset: EncodedDataset, count: int) -> list[TokenRow]:
        """The first `count` rows of a dataset's calibration set: those that its gradient was measured on."""
        stored = [dataset[int(row)] for row in calibration_rows(dataset, count)]
        return [example.token_row for example in stored]

    @property
    def compared(self) -> list[str]:
        """The merge, and joint training where there is one."""
        return [label for label in (MERGE, JOINT) if label in self.models.folders]

    def _depends(self, name: CheckName) -> str:
        own: list[Any] = [getattr(self.config, key) for key in _USES[name]]
        found = self.conflict
        if found is not None and name == "curvature":
            own += [found.similarity.tolist(), found.axes, found.centre]
        if found is not None and name == "calibration":
            own += [found.calibration, dict(found.tokens), found.axes, found.centre]
        return fingerprint(name, self.mark, self.precision, self.seed, own)

    def _losses(self, *, held_out: bool) -> LossSet:
        return LossSet.of(
            self.datasets,
            self.config.examples,
            held_out=held_out,
            batch_tokens=self.batch_tokens,
            precision=self.precision,
            seed=self.seed,
        )


def _lmc(bench: Bench, journal: Journal) -> Check:
    sets = {"held_out": bench.held_out, "train": bench.train}
    pairs = segment_pairs(bench.models)
    return connectivity(bench.live, pairs, sets, points=bench.config.points, journal=journal, progress=bench.progress)


def _displacement(bench: Bench, journal: Journal) -> Check:
    models = bench.models
    ways = trajectories(models.trajectories, models.branch_labels, models.weights) if models.trajectories else None
    return displacement(bench.moves).model_copy(update={"trajectories": ways})


def _gain(bench: Bench, journal: Journal) -> Check:
    return merging_gain(bench.live, bench.models, bench.held_out, bench.train, journal=journal, progress=bench.progress)


def _perturbation(bench: Bench, journal: Journal) -> Check:
    return perturbation(
        bench.live,
        bench.compared,
        bench.held_out,
        noise=bench.config.noise,
        seeds=bench.config.noise_seeds,
        journal=journal,
        progress=bench.progress,
    )


def _curvature(bench: Bench, journal: Journal) -> Check:
    conflict, config = _conflict(bench, "curvature"), bench.config
    return curvature(
        bench.live,
        bench.models,
        [bench.calibration_examples(dataset, config.examples) for dataset in bench.datasets],
        conflict.similarity,
        bench.run.diagnostic_progress("curvature").with_suffix(""),
        axes=conflict.axes,
        centre=conflict.centre,
        gauss_newton=config.matrix == "gauss_newton",
        pairs=config.eigenpairs,
        steps=config.lanczos_steps,
        probes=config.probes,
        tokens=config.hessian_tokens,
        batch_tokens=config.hessian_batch_tokens,
        seed=bench.seed,
        fingerprint=journal.fingerprint,
        journal=journal,
        progress=bench.progress,
    )


def _calibration(bench: Bench, journal: Journal) -> Check:
    conflict = _conflict(bench, "calibration")
    config = conflict.calibration
    bench.live.set({BASE: 1.0})
    engine = GradientEngine(
        bench.live.model, SketchSpec.of(config), batch_tokens=config.batch_tokens, precision=bench.precision
    )
    examples = {
        name: [_encoded(row) for row in bench.calibration_examples(data, config.examples)]
        for name, data in zip(bench.names, bench.datasets, strict=True)
    }
    return calibration(
        engine, examples, conflict.tokens, axes=conflict.axes, centre=conflict.centre, progress=bench.progress
    )


def _encoded(row: TokenRow) -> Encoded:
    return Encoded(list(row[0]), list(row[1]), images=getattr(row, "images", ()))


def _conflict(bench: Bench, check: str) -> Conflict:
    if bench.conflict is None:
        raise InputError(f"the check `{check}` needs two datasets at least, and their measured conflict")
    return bench.conflict


def _landscape(bench: Bench, journal: Journal) -> Check:
    plane = Plane.of(bench.moves.labels, bench.moves.gram)
    return landscape(
        bench.live, plane, bench.held_out, grid=bench.config.grid, journal=journal, progress=bench.progress
    )


_RUN: dict[CheckName, Callable[[Bench, Journal], Check]] = {
    "lmc": _lmc,
    "displacement": _displacement,
    "gain": _gain,
    "perturbation": _perturbation,
    "curvature": _curvature,
    "calibration": _calibration,
    "landscape": _landscape,
}
# The settings that each check's result depends on.
_USES: dict[CheckName, tuple[str, ...]] = {
    "lmc": ("examples", "points"),
    "displacement": (),
    "gain": ("examples",),
    "perturbation": ("examples", "noise", "noise_seeds"),
    "curvature": (
        "examples",
        "matrix",
        "eigenpairs",
        "lanczos_steps",
        "probes",
        "hessian_tokens",
        "hessian_batch_tokens",
    ),
    "calibration": (),
    "landscape": ("examples", "grid"),
}
