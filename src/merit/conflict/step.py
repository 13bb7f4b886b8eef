"""Stage `conflict`: one mean gradient a dataset at θ0, then similarity, reliability and axes.

Several devices share the datasets: one worker job each, the longest datasets first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merit.base.files import atomic_path, write_text
from merit.base.progress import FileProgress
from merit.base.record import fingerprint
from merit.config.sections import Centre, centre_mark
from merit.conflict.axes import AxesResult, principal_axes
from merit.conflict.similarity import (
    DUPLICATE,
    ConflictResult,
    HalfGram,
    cosines,
    gram,
    half_gram,
    noise,
    reliability,
    score_noise,
)
from merit.context import RunContext, Step
from merit.data.mixture import Mixture
from merit.gradients.store import SketchStore
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent
from merit.run.events import stage_events
from merit.run.layout import RunDir
from merit.split.evidence import most_axes, stability
from merit.workers import open_as_worker, run_workers, worker_job

if TYPE_CHECKING:
    from merit.gradients.collect import Measurement

NAME = "conflict"
_log = logging.getLogger(__name__)
UNRELIABLE = 0.5  # below it, most of a mean gradient is noise


def wanted(context: RunContext) -> bool:
    """One dataset has nothing to conflict with."""
    return len(context.config.mixture) > 1


def depends(context: RunContext) -> dict[str, str]:
    """The calibration's settings, the data, θ0, and how many axes are kept."""
    config = context.config
    return {
        "calibration": fingerprint(config.calibration, config.train.precision),
        "axes": fingerprint(_axes(context), centre_mark(config.split.centre)),
        "mixture": fingerprint(context.data_fingerprints(), context.mixture.names),
        "model": fingerprint(context.measured_model.fingerprint, context.config.model.freeze),
    }


def outputs(context: RunContext) -> list[Path]:
    """What a forced rerun makes anew."""
    return [context.run.gradients]


def files(context: RunContext) -> list[Path]:
    """What must not be damaged. The gradient store looks after itself."""
    run = context.run
    return [run.similarity, run.conflict, run.axes, run.explanation]


def run(context: RunContext) -> dict[str, Any]:
    """Writes gradients/ and conflict/."""
    from merit.conflict.explain import explain
    from merit.gradients.collect import collect_sketches

    store = collect_sketches(
        measurement(context),
        enough=_enough(context) if context.config.calibration.until is not None else None,
        spread=partial(spread, context),
    )
    result, axes, similarity = measure_conflict(
        context.run, context.mixture, store, _axes(context), context.config.split.centre
    )
    if store.info.layout.spec.hashed:  # no number of it belongs to a layer any more
        context.run.explanation.unlink(missing_ok=True)
    else:
        explain(store, axes, similarity).save(context.run.explanation)
    return {"tokens": sum(result.tokens), "examples": sum(result.examples)}


def _enough(context: RunContext) -> Callable[[SketchStore], bool]:
    """Whether the main method's partition is as stable as `calibration.until` asks."""
    mixture, split, until = context.mixture, context.config.split, context.config.calibration.until or 1.0
    r = min(2, most_axes(len(mixture.names))) if split.axes == "auto" else split.axes

    def enough(store: SketchStore) -> bool:
        halves = half_gram(store.companion, mixture.names)
        found = stability(halves, mixture.sizes(split.balance), r=r, centre=split.centre)
        _log.info("stability of the partition: %.2f (target %.2f)", found, until)
        return found >= until

    return enough


def _axes(context: RunContext) -> int:
    """Axes kept: as many as the split may need."""
    wanted = [method.config.axes or 1 for method in context.trained]
    return max(most_axes(len(context.config.mixture)) if axes == "auto" else axes for axes in wanted)


def _says(context: RunContext) -> str:
    return f"measuring conflict: gradients of {len(context.config.mixture)} datasets at θ0"


def measure_conflict(
    run: RunDir, mixture: Mixture, store: SketchStore, axes: int, centre: Centre
) -> tuple[ConflictResult, AxesResult, NDArray[np.float64]]:
    """Similarity (T×T cosines, float64), its axes and its reliability, in the mixture's order.

    Writes `conflict/similarity.npy`, `conflict.json` and `axes.json`, each atomically.

    Raises:
        InputError: a sketch is missing or truncated.
    """
    products = gram(store, mixture.names)
    similarity = cosines(products)
    halves = half_gram(store.companion, mixture.names)
    result = describe(store, halves, products)
    found = principal_axes(mixture.names, similarity, axes=axes, centre=centre)
    errors = score_noise(halves, found)
    found = found.model_copy(update={"noise": [_optional(row) for row in errors]})
    with atomic_path(run.similarity) as part, part.open("wb") as handle:
        np.save(handle, similarity)
    found.save(run.axes)
    result.save(run.conflict)
    return result, found, similarity


def describe(store: SketchStore, halves: HalfGram, products: NDArray[np.float64]) -> ConflictResult:
    """Everything about the similarity but the matrix itself. `products` are those of the mean gradients, (T, T)."""
    rows = store.rows(halves.names)
    rel = _optional(reliability(halves))
    return ConflictResult(
        names=list(halves.names),
        sketch=str(store.info.layout.spec),
        sketch_numbers=store.numbers,
        parameters=store.info.layout.parameters,
        examples=[sum(row.examples) for row in rows],
        tokens=[sum(row.tokens) for row in rows],
        norms=np.sqrt(np.diag(products)).tolist(),
        losses=[row.loss for row in rows],
        reliability=rel,
        noise=_optional(noise(halves)),
        notes=_notes(halves.names, cosines(products), rel),
    )


def _notes(names: Sequence[str], similarity: NDArray[np.float64], rel: Sequence[float | None]) -> list[str]:
    notes = []
    for name, value in zip(names, rel, strict=True):
        if value is None:
            notes.append(f"`{name}` has a single calibration example: its reliability cannot be measured")
        elif value < UNRELIABLE:
            notes.append(f"`{name}`: most of its gradient is noise (reliability {value:.2f}); use more examples")
    for i, j in zip(*np.nonzero(np.triu(similarity > DUPLICATE, 1)), strict=True):
        cosine = similarity[i, j]
        notes.append(f"`{names[i]}` and `{names[j]}` have nearly the same gradient (cosine {cosine:.3f})")
    return notes


def _optional(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def spread(context: RunContext, size: int) -> None:
    """Measures `size` examples of every dataset with as many workers as there are devices.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    job = partial(_job, context, size)
    run_workers(context, len(context.mixture.names), job)


def run_worker(root: Path, worker: int, size: int | None, precision: str | None = None) -> None:
    """The job: measures datasets until none is left that no other worker has in hand.

    Raises:
        InputError: as `open_as_worker`, or as `collect_sketches`.
    """
    from merit.gradients.collect import Collector

    die_with_parent()
    context = open_as_worker(root, precision)
    size = size or context.config.calibration.examples
    job = _job(context, size, worker)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"gradients worker {worker}") as facts:
        facts |= {"datasets": Collector(measurement(context)).share(size)}
    write_text(job.done, "")


def measurement(context: RunContext) -> Measurement:
    """What the gradients of a run are measured with."""
    from merit.gradients.collect import Measurement
    from merit.models.loading import load_model, pick_precision

    model = context.measured_model
    return Measurement(
        context.run,
        context.mixture,
        lambda: load_model(
            model.path,
            trust_remote_code=model.trust_remote_code,
            freeze=context.config.model.freeze if model == context.model else None,
        ),
        context.config.calibration,
        model.fingerprint,
        pick_precision(context.config.train.precision),
        context.progress,
    )


def _job(context: RunContext, size: int, worker: int) -> Job:
    arguments = ("conflict", str(context.run.root.resolve()), "--examples", str(size))
    return worker_job(context, context.run.gradients / "jobs", "gradients", "tok", worker, arguments)


STEP = Step(NAME, run, depends, says=_says, outputs=outputs, files=files, wanted=wanted)
