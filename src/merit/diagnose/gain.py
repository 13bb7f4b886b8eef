"""Theorem 1 measured: Σ w_i L(θ_i) − L(θ̄), and training against held-out losses of merge and joint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from merit.base.progress import SILENT, Counter, Progress
from merit.diagnose.journal import Journal
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.models import BASE, JOINT, MERGE, Models
from merit.diagnose.records import Estimate, FaceLosses, GainResult
from merit.diagnose.resample import Vector, interval


def merging_gain(
    live: LiveModel,
    models: Models,
    held_out: LossSet,
    train: LossSet,
    *,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> GainResult:
    """Losses of every model on both sets, and the gain with its interval.

    Raises:
        StageError: a loss is not finite.
    """
    journal = journal or Journal()
    labels = [BASE, *models.tuned]
    found: dict[str, dict[str, list[float]]] = {}
    with progress.bar("gain", total=len(labels) * (len(held_out.rows) + len(train.rows)), unit="example") as bar:
        counter = Counter(bar)

        def measure(label: str) -> dict[str, list[float]]:
            live.set({label: 1.0})
            return {
                "held_out": held_out.measure(live.model, label, counter).tolist(),
                "train": train.measure(live.model, label, counter).tolist(),
            }

        for label in labels:
            counter.note(label)
            found[label] = journal.get(label, partial(measure, label))
    faces = {name: {label: np.array(found[label][name]) for label in labels} for name in ("held_out", "train")}
    return GainResult(
        fingerprint="",
        seconds=0,
        weights=list(models.weights),
        held_out=_face(models, faces["held_out"], held_out),
        train=_face(models, faces["train"], train),
        gap_merge=_gap(faces, MERGE, held_out, train),
        gap_joint=_gap(faces, JOINT, held_out, train) if models.joint is not None else None,
    )


def _face(models: Models, losses: Mapping[str, Vector], examples: LossSet) -> FaceLosses:
    resampler = examples.resampler
    parts = np.array([losses[label] for label in models.branch_labels])
    return FaceLosses(
        losses={label: resampler.estimate(values) for label, values in losses.items()},
        gain=resampler.estimate(np.asarray(models.weights) @ parts - losses[MERGE]),
        merge_minus_base=resampler.estimate(losses[MERGE] - losses[BASE]),
        merge_minus_joint=resampler.estimate(losses[MERGE] - losses[JOINT]) if JOINT in losses else None,
    )


def _gap(faces: Mapping[str, Mapping[str, Vector]], label: str, held_out: LossSet, train: LossSet) -> Estimate:
    """Different examples, drawn on their own: both sets' noise adds up."""
    outside, inside = faces["held_out"][label][None, :], faces["train"][label][None, :]
    value = held_out.resampler.mean(outside)[0] - train.resampler.mean(inside)[0]
    draws = held_out.resampler.drawn(outside)[:, 0] - train.resampler.drawn(inside)[:, 0]
    return interval(float(value), draws)
