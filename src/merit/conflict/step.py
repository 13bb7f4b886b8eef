"""Stage `conflict`: one mean gradient a dataset at θ0, then similarity and axes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from merit.base.record import fingerprint
from merit.conflict.similarity import half_gram
from merit.context import RunContext, Step
from merit.gradients.store import SketchStore
from merit.gradients.worker import measurement, spread
from merit.split.evidence import most_axes
from merit.split.stability import stability

NAME = "conflict"
_log = logging.getLogger(__name__)


def wanted(context: RunContext) -> bool:
    """One dataset has nothing to conflict with."""
    return len(context.config.mixture) > 1


def depends(context: RunContext) -> dict[str, str]:
    """The calibration's settings, the data, θ0, and how many axes are kept."""
    config = context.config
    return {
        "calibration": fingerprint(config.calibration, config.train.precision),
        "axes": fingerprint(_axes(context), config.split.centre),
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
    from merit.conflict.measure import measure_conflict
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
        found = stability(half_gram(store.companion, mixture.names), mixture.planned_tokens, r=r, centre=split.centre)
        _log.info("stability of the partition: %.2f (target %.2f)", found, until)
        return found >= until

    return enough


def _axes(context: RunContext) -> int:
    """Axes kept: as many as the split may need."""
    wanted = [method.config.axes or 1 for method in context.methods]
    return max(most_axes(len(context.config.mixture)) if axes == "auto" else axes for axes in wanted)


def _says(context: RunContext) -> str:
    return f"measuring conflict: gradients of {len(context.config.mixture)} datasets at θ0"


STEP = Step(NAME, run, depends, says=_says, outputs=outputs, files=files, wanted=wanted)
