"""Which trainings a method needs: one spec a branch. Equal specs are one cell, whichever methods ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merit.base.logging import get_logger
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.sections import UNSPLIT
from merit.config.study import MethodConfig
from merit.conflict.measure import measure_conflict
from merit.conflict.records import AxesResult
from merit.conflict.similarity import half_gram
from merit.data.build import build_mixture
from merit.data.mixture import Mixture
from merit.gradients.collect import Measurement, collect_sketches
from merit.models.loading import load_model, pick_precision
from merit.run.layout import relative
from merit.split.evidence import AxesEvidence, weigh_axes
from merit.split.make import make_partition
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest
from merit.study.spec import Study
from merit.train.spec import BranchData, BranchSpec

_SEED_STEP = 1000  # between the training seeds of two study seeds: room for a soup's copies
_log = get_logger(__name__)


class SeedData:
    """One seed: its data, and its conflict, which is measured once for all methods and budgets.

    Attributes:
        evidence: how many axes the data support.
    """

    def __init__(self, study: Study, seed: int, progress: Progress = SILENT) -> None:
        """Reads and measures what is not there yet.

        Raises:
            InputError: a dataset cannot be read or measured.
        """
        self.study, self.seed = study, seed
        self.run = study.dir.seed(seed)
        config = study.run_config(seed)
        self.mixture: Mixture = build_mixture(config, study.base, self.run, study.tokenizer, progress)
        theta0 = study.theta0
        measurement = Measurement(
            self.run,
            self.mixture,
            lambda: load_model(theta0.path, trust_remote_code=theta0.trust_remote_code),
            config.calibration,
            theta0.fingerprint,
            pick_precision(config.train.precision),
            progress,
        )
        self.store = collect_sketches(measurement)
        most = max(2, *(item.axes for item in study.config.methods.values() if isinstance(item.axes, int)))
        most = min(most, len(self.mixture.names))
        _, axes, similarity = measure_conflict(self.run, self.mixture, self.store, most, study.config.centre)
        self.axes: AxesResult = axes
        self.similarity: NDArray[np.float64] = similarity
        self.halves = half_gram(self.store.companion, self.mixture.names)
        self.evidence: AxesEvidence = weigh_axes(self.halves, self.mixture.planned_tokens, centre=study.config.centre)

    def partition(self, method: MethodConfig) -> Partition:
        """The method's groups. A soup's are copies of the whole; no axis worth a cut is joint training."""
        splitter, axes = method.splitter, 1
        if isinstance(method.axes, int):
            axes = method.axes
        else:
            axes = min(self.evidence.recommended, len(self.axes.scores[0]))
            if axes == 0:
                splitter, axes = UNSPLIT, 1
        partition = make_partition(
            splitter,
            SplitRequest(
                self.mixture.planned_tokens, r=axes, seed=self.seed, axes=self.axes, similarity=self.similarity
            ),
        )
        if method.copies is not None:
            return partition.model_copy(update={"groups": [partition.groups[0]] * method.copies})
        return partition

    def specs(self, method: MethodConfig, budget: float) -> list[BranchSpec]:
        """One a branch."""
        return [
            self.spec(
                group.datasets,
                budget,
                epochs=method.epochs,
                rate=method.rate,
                pull=method.pull,
                copy=k if method.copies is not None else 0,
            )
            for k, group in enumerate(self.partition(method).groups)
        ]

    def spec(
        self, names: Sequence[str], budget: float, *, epochs: float, rate: float, pull: float = 0.0, copy: int = 0
    ) -> BranchSpec:
        """The training on `names`. Nothing in it says which method asked."""
        study, train = self.study, self.study.config.train
        summaries = {item.name: item for item in self.mixture.datasets}
        order = sorted(names)  # the same group is the same cell, however it was found
        data = [
            BranchData(
                name=name,
                data=relative(self.run.data(name), study.dir.root),
                weight=summaries[name].weight * budget,
                fingerprint=summaries[name].fingerprint,
            )
            for name in order
        ]
        recipe = train.model_copy(
            update={"epochs": train.epochs * epochs, "learning_rate": train.learning_rate * rate, "pull": pull}
        )
        planned = sum(summaries[name].planned_tokens for name in order) * budget * recipe.epochs
        return BranchSpec(
            method="study",
            branch=0,
            model=study.model,
            model_fingerprint=study.theta0.fingerprint,
            train=recipe,
            data=data,
            max_length=self.mixture.max_length,
            planned_tokens=round(planned),
            seed=self.seed * _SEED_STEP + copy,
        )


def cell_mark(spec: BranchSpec) -> str:
    """The cell's name."""
    return fingerprint(spec)
