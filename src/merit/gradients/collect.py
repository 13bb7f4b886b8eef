"""The gradient stage: every dataset of the mixture, its calibration examples, its sketch into the store."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from merit.base.errors import InputError
from merit.base.locks import claim
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.calibration import CalibrationConfig
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.store import EncodedDataset, calibration_rows
from merit.gradients.engine import GradientEngine, OnTokens
from merit.gradients.sketch import SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo
from merit.models.loading import Precision
from merit.run.layout import RunDir

logger = logging.getLogger(__name__)

FIRST_ROUND = 32  # examples; even, so that the next ones go on alternating between the halves

Enough = Callable[[SketchStore], bool]


@dataclass(frozen=True)
class Measurement:
    """What the gradients of a mixture are measured with.

    Attributes:
        load: returns θ0; called only if there is something to measure.
        fingerprint: of θ0.
    """

    run: RunDir
    mixture: Mixture
    load: Callable[[], Any]
    config: CalibrationConfig
    fingerprint: str
    precision: Precision
    progress: Progress = SILENT


def collect_sketches(
    measurement: Measurement, enough: Enough | None = None, spread: Callable[[int], None] = lambda _: None
) -> SketchStore:
    """Measures the sketch of every dataset that has none yet, longest first; a kill costs the dataset in hand.

    Args:
        enough: asked after each round of examples (32, 64, … `config.examples`) whether to stop. Without it there is
            a single round.
        spread: called before each round with its number of examples, to let other processes `share` in it.

    Raises:
        InputError: an example longer than the model's context, no supervised token, a gradient that is not finite or
            zero everywhere.
    """
    collector, config = Collector(measurement), measurement.config
    if enough is None:
        return collector.round(config.examples, spread)
    for size in _rounds(config.examples):
        store = collector.round(size, spread)
        if size < config.examples and enough(store):
            logger.info("the partition is settled; no dataset needs more than %d examples", size)
            break
    return store


def _rounds(most: int) -> list[int]:
    """32, 64, 128, … and `most`."""
    sizes = [most]
    size = FIRST_ROUND
    while size < most:
        sizes.insert(-1, size)
        size *= 2
    return sizes


class Collector:
    """Measures the datasets of one mixture; the model is loaded when it is first needed."""

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._datasets = {dataset.name: dataset for dataset in measurement.mixture.datasets}
        self._spec = SketchSpec.of(measurement.config)
        self._engine: GradientEngine | None = None
        self._sizes = _rounds(measurement.config.examples)

    def missing(self, size: int) -> int:
        """Datasets without a whole row of `size` examples or more."""
        store = self._existing()
        if store is None:
            return len(self._datasets)
        return sum(self._size(store, name) < size for name in self._datasets)

    def round(self, size: int, spread: Callable[[int], None]) -> SketchStore:
        """Gives every dataset a row of `size` examples; a row of a larger round stays, that of a smaller one grows."""
        if self.missing(size) > 1:
            spread(size)
        store = self._existing()
        return store if store is not None and self.missing(size) == 0 else self._work(size, wait=True)[0]

    def share(self, size: int) -> int:
        """As `round`, beside other processes: measures the datasets that none of them has in hand, and counts them.

        Raises:
            InputError: no round has `size` examples.
        """
        if size not in self._sizes:
            raise InputError(f"use one of {', '.join(map(str, self._sizes))}, not {size}", field="--examples")
        return self._work(size, wait=False)[1]

    def _work(self, size: int, *, wait: bool) -> tuple[SketchStore, int]:
        store = self._existing()
        have = {name: 0 if store is None else self._size(store, name) for name in self._datasets}
        engine = self._engine = self._engine or self._start()
        info = StoreInfo(
            model_fingerprint=self._measurement.fingerprint, precision=self._measurement.precision, layout=engine.layout
        )
        if store is None or store.info != info:
            store = SketchStore.create(self._measurement.run.gradients, info)
            _announce(store, len(self._datasets))
        jobs = {
            name: _calibration(self._measurement.run, self._datasets[name], size, engine.model, skip=have[name])
            for name in self._datasets
            if have[name] < size
        }
        done = measured = 0
        with self._measurement.progress.bar(
            "gradients", total=sum(job.cost for job in jobs.values()), unit="tok"
        ) as bar:
            for name in sorted(jobs, key=lambda name: -jobs[name].cost):

                def on_tokens(count: int, name: str = name) -> None:
                    nonlocal done
                    done += count
                    bar.update(done, note=name)

                lock = store.path(name).with_suffix(".lock")
                with claim(lock, wait_seconds=math.inf if wait else 0) as mine:
                    if mine and (wait or self._size(store, name) == have[name]):
                        self._measure(store, name, jobs[name], size, grows=have[name] > 0, on_tokens=on_tokens)
                        measured += 1
                    else:
                        on_tokens(jobs[name].cost)
        if engine.in_full:
            logger.info("gradients formed in full before folding: %s", ", ".join(sorted(engine.in_full)))
        return store, measured

    def _measure(
        self, store: SketchStore, name: str, job: _Job, size: int, *, grows: bool, on_tokens: OnTokens
    ) -> None:
        before = store.row(name) if grows else None
        if before is not None and not job.examples:  # the dataset has no more
            store.relabel(before.model_copy(update={"fingerprint": self._key(name, size)}))
            return
        engine = self._engine = self._engine or self._start()
        found = engine.measure(name, job.examples, on_tokens)
        row = RowInfo(
            name=name,
            fingerprint=self._key(name, size),
            numbers=store.numbers,
            examples=found.examples,
            tokens=found.tokens,
            losses=found.losses,
            rows=job.rows,
        )
        if before is None:
            store.write(row, found.sums)
        else:
            store.add(row.plus(before), found.sums)

    def _key(self, name: str, size: int) -> str:
        return fingerprint(
            self._datasets[name].fingerprint,
            size,
            self._spec,
            self._measurement.fingerprint,
            self._measurement.precision,
        )

    def _size(self, store: SketchStore, name: str) -> int:
        """The round that a whole row of `name` belongs to, 0 if there is none."""
        keys = {self._key(name, size): size for size in self._sizes}
        row = store.find(name, keys)
        twin = row and (store.companion.find(name, keys) if store.companion is not store else row)
        return keys[row.fingerprint] if row and twin and row.fingerprint == twin.fingerprint else 0

    def _existing(self) -> SketchStore | None:
        """The store that is there, if it is of the same sketch of the same model."""
        on = self._measurement
        return SketchStore.matching(on.run.gradients, self._spec, on.fingerprint, on.precision)

    def _start(self) -> GradientEngine:
        return GradientEngine(
            self._measurement.load(),
            self._spec,
            batch_tokens=self._measurement.config.batch_tokens,
            precision=self._measurement.precision,
            recompute=self._measurement.config.recompute,
        )


def _announce(store: SketchStore, datasets: int) -> None:
    spec = store.info.layout.spec
    logger.info(
        "sketches (%s): %s of %s numbers a gradient, %.1f MB in all",
        spec,
        f"{store.numbers:,}",
        f"{store.info.layout.parameters:,}",
        store.row_bytes * datasets / 1e6,
    )
    if spec.kind == "flat":
        logger.warning(
            "sampled coordinates miss or overweight the few that hold a gradient's energy: in a model of 135M their "
            "cosines correlated at 0.93 to 0.96 (stride 5, by offset) with those of full gradients, the fold's at "
            "0.999; the paper has 0.988 for 3B"
        )


@dataclass(frozen=True)
class _Job:
    """Calibration examples of one dataset that are still to be measured."""

    rows: list[int]
    examples: list[Encoded]

    @property
    def cost(self) -> int:
        """Tokens."""
        return sum(len(example.input_ids) for example in self.examples)


def _calibration(run: RunDir, dataset: DatasetSummary, count: int, model: Any, *, skip: int) -> _Job:
    """The first `count` calibration examples of a dataset but for `skip`, checked against the model's context."""
    encoded = EncodedDataset.open(run.data(dataset.name))
    rows = calibration_rows(encoded, count)
    if len(rows) < count:
        logger.info("%s: %d training examples, fewer than the %d asked for", dataset.name, len(rows), count)
    job = _Job([], [])
    for row in rows[skip:].tolist():
        job.rows.append(row)
        job.examples.append(encoded[row].encoded)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(example.input_ids) for example in job.examples), default=0)
    if context is not None and longest > context:
        raise InputError(
            f"an example of {longest:,} tokens is longer than the model's context of {context:,}; lower "
            "`train.max_length`",
            field=f"mixture.{dataset.name}",
        )
    return job
