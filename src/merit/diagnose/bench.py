"""What the checks of one diagnosis share: one loaded model, the examples, and where results go."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import fingerprint
from merit.config.diagnose import CheckName
from merit.config.sections import Centre
from merit.conflict.similarity import load_similarity
from merit.context import RunContext
from merit.data.store import EncodedDataset, calibration_rows
from merit.diagnose.check import Check, Journal, find_check
from merit.diagnose.checks.displacement import Moves, measure_moves
from merit.diagnose.losses import LossSet
from merit.diagnose.models import JOINT, MERGE, Models
from merit.diagnose.records import CheckResult
from merit.split.partition import Partition

if TYPE_CHECKING:
    from merit.config.calibration import CalibrationConfig
    from merit.data.example import Encoded
    from merit.diagnose.live import LiveModel
    from merit.models.loading import Precision

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conflict:
    """What the conflict stage found and was told."""

    similarity: NDArray[np.float64]  # (T, T) cosines, in the mixture's order
    sizes: Mapping[str, int]  # dataset → what it weighs in a cut
    axes: int
    centre: Centre
    calibration: CalibrationConfig


class Bench:
    """A diagnosis of the models of one run, or of one of its rounds. A model, or examples, are loaded when a check
    first needs them.

    Attributes:
        mark: fingerprint of weights and data.
        journal: what the current check had measured before it was killed; `get` keeps a piece.
        settings: those of the current check, where it has its own.
    """

    def __init__(self, context: RunContext, models: Models, mark: str, number: int | None = None) -> None:
        self.context, self.models, self.mark = context, models, mark
        self.run, self.progress = replace(context.run, round=number), context.progress
        self.config, self.seed = context.config.diagnose, context.config.seed
        self.names: list[str] = context.mixture.names
        self.journal = Journal()
        self.settings: Any = None

    def check(self, name: CheckName, *, redo: bool = False) -> CheckResult:
        """The result of a check: the stored one if nothing that it depends on has changed, else measured now.

        Raises:
            InputError: no such check; the models do not fit together.
            StageError: a loss is not finite.
        """
        self.models.check()
        check, path = find_check(name), self.run.diagnostic(name)
        stored, depends = self._stored(name, check)
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

    def stored(self, name: CheckName) -> CheckResult | None:
        """The result of a check, if it is there and nothing that it depends on has changed."""
        return self._stored(name, find_check(name))[0]

    def _stored(self, name: CheckName, check: Check[Any]) -> tuple[CheckResult | None, str]:
        """As `stored`, and the fingerprint that a result has now."""
        self.settings = getattr(self.config.settings, name) if check.settings is not None else None
        depends = self._depends(name, check)
        stored: CheckResult | None = kept(self.run.diagnostic(name), check.result, {"fingerprint": depends}).record
        return stored, depends

    @cached_property
    def live(self) -> LiveModel:
        """θ0 in float32, and the checkpoints of the other models."""
        from merit.diagnose.live import LiveModel
        from merit.models.loading import load_model

        trusted, freeze = self.context.model.trust_remote_code, self.context.config.model.freeze
        model = load_model(self.models.base, trust_remote_code=trusted, freeze=freeze)
        return LiveModel(model, self.models.folders)

    @cached_property
    def precision(self) -> Precision:
        from merit.models.loading import pick_precision

        return pick_precision(self.context.config.train.precision)

    @cached_property
    def datasets(self) -> list[EncodedDataset]:
        """In the mixture's order, as `names`."""
        return [EncodedDataset.open(self.run.data(name)) for name in self.names]

    @cached_property
    def held_out(self) -> LossSet:
        return self._losses(held_out=True)

    @cached_property
    def train(self) -> LossSet:
        return self._losses(held_out=False)

    @property
    def sets(self) -> dict[str, LossSet]:
        """Held-out and training examples, by the names that results give them."""
        return {"held_out": self.held_out, "train": self.train}

    @cached_property
    def moves(self) -> Moves:
        # Headers and weights on disk are enough: no model is loaded for it.
        from merit.diagnose.live import Aligned

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

    @cached_property
    def conflict(self) -> Conflict | None:
        """None where the run has measured none: it has fewer than two datasets."""
        config, mixture = self.context.config, self.context.mixture
        if not self.run.similarity.is_file() or len(mixture.names) < 2:
            return None
        groups = len(Partition.load(self.context.methods[0].dir.partition).groups)
        return Conflict(
            similarity=load_similarity(self.run.similarity),
            sizes=mixture.sizes(config.split.balance),
            axes=groups.bit_length() - 1 if config.split.axes == "auto" else config.split.axes,
            centre=config.split.centre,
            calibration=config.calibration,
        )

    def measured_conflict(self, check: CheckName) -> Conflict:
        """`conflict`, for a check that cannot do without it.

        Raises:
            InputError: there is none.
        """
        if self.conflict is None:
            raise InputError(f"the check `{check}` needs at least two datasets, and their measured conflict")
        return self.conflict

    def _depends(self, name: CheckName, check: Check[Any]) -> str:
        own: list[Any] = [*(getattr(self.config, key) for key in check.uses), *check.depends(self)]
        if self.settings is not None:
            own.append(self.settings)
        return fingerprint(name, self.mark, self.precision, self.seed, own, *extensions.marks("checks", name))

    def _losses(self, *, held_out: bool) -> LossSet:
        return LossSet.of(
            self.datasets,
            self.config.examples,
            held_out=held_out,
            batch_tokens=self.context.config.evaluate.batch_tokens,
            precision=self.precision,
            seed=self.seed,
        )
