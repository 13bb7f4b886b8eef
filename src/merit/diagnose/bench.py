"""What the checks of one diagnosis share: one loaded model, the examples, and where results go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.diagnose import CheckName, DiagnoseConfig
from merit.config.sections import CalibrationConfig
from merit.data.example import Encoded
from merit.data.store import EncodedDataset, calibration_rows
from merit.diagnose.check import Check, Journal, find_check
from merit.diagnose.checks.displacement import Moves, measure_moves
from merit.diagnose.live import Aligned, LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.models import JOINT, MERGE, Models
from merit.diagnose.records import CheckResult
from merit.models.loading import Precision
from merit.run.layout import RunDir

_log = logging.getLogger(__name__)


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
        journal: what the check at hand has measured before it was killed; `get` keeps a piece.
        settings: those of the check at hand, where it has its own.
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
    journal: Journal = field(default_factory=Journal, init=False)
    settings: Any = field(default=None, init=False)

    def check(self, name: CheckName, *, redo: bool = False) -> CheckResult:
        """The result of a check: as it is stored, if nothing that it depends on has changed, else measured now.

        Raises:
            InputError: no such check; the models do not fit together.
            StageError: a loss is not finite.
        """
        self.models.check()
        check, path = find_check(name), self.run.diagnostic(name)
        self.settings = getattr(self.config.settings, name) if check.settings is not None else None
        depends = self._depends(name, check)
        stored: CheckResult | None = kept(path, check.result, {"fingerprint": depends}).record
        if stored is not None and not redo:
            _log.info("%s: unchanged, kept", name)
            return stored
        self.journal = Journal(self.run.diagnostic_progress(name), depends)
        started = time.monotonic()
        result: CheckResult = check.run(self)
        seconds = round(time.monotonic() - started, 3)
        result = result.model_copy(update={"fingerprint": depends, "seconds": seconds})
        result.save(path)
        self.journal.close()
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
    def calibration_examples(dataset: EncodedDataset, count: int) -> list[Encoded]:
        """The first `count` rows of a dataset's calibration set: those that its gradient was measured on."""
        stored = [dataset[int(row)] for row in calibration_rows(dataset, count)]
        return [example.encoded for example in stored]

    @property
    def compared(self) -> list[str]:
        """The merge, and joint training where there is one."""
        return [label for label in (MERGE, JOINT) if label in self.models.folders]

    def measured_conflict(self, check: CheckName) -> Conflict:
        """`conflict`, for a check that cannot do without it.

        Raises:
            InputError: there is none.
        """
        if self.conflict is None:
            raise InputError(f"the check `{check}` needs two datasets at least, and their measured conflict")
        return self.conflict

    def _depends(self, name: CheckName, check: Check[Any]) -> str:
        own: list[Any] = [*(getattr(self.config, key) for key in check.uses), *check.depends(self)]
        if self.settings is not None:
            own.append(self.settings)
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
