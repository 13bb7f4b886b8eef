"""Flatness: how the loss climbs when noise is added to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from merit.base.progress import SILENT, Counter, Progress
from merit.diagnose.journal import Journal
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.models import JOINT, MERGE
from merit.diagnose.records import NoiseLevel, PerturbationResult
from merit.diagnose.resample import Matrix, Resampler


def perturbation(
    live: LiveModel,
    labels: Sequence[str],
    examples: LossSet,
    *,
    noise: Sequence[float],
    seeds: int,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> PerturbationResult:
    """Held-out loss of each model under filter-normalised Gaussian noise σ, the same noise for every model.

    Raises:
        StageError: a loss is not finite.
    """
    journal = journal or Journal()
    levels = sorted({0.0, *noise})
    passes = len(labels) * (1 + seeds * (len(levels) - 1))
    found: dict[str, list[Matrix]] = {}
    with progress.bar("perturbation", total=passes * len(examples.rows), unit="example") as bar:
        counter = Counter(bar)

        def measure(label: str, sigma: float, seed: int) -> list[float]:
            live.set({label: 1.0})
            if sigma:
                live.add_noise(sigma, seed)
            losses: list[float] = examples.measure(live.model, f"{label} with noise {sigma:g}", counter).tolist()
            return losses

        for label in labels:
            found[label] = []
            for sigma in levels:
                counter.note(f"{label}, σ = {sigma:g}")
                rows = [
                    journal.get(f"{label} {sigma:g} {seed}", partial(measure, label, sigma, seed))
                    for seed in range(seeds if sigma else 1)
                ]
                found[label].append(np.array(rows))
    resampler = examples.resampler
    against = None
    if {MERGE, JOINT} <= found.keys():
        merge, joint = ([rows.mean(0) - one[0][0] for rows in one] for one in (found[MERGE], found[JOINT]))
        against = [resampler.estimate(a - b) for a, b in zip(merge, joint, strict=True)]
    return PerturbationResult(
        fingerprint="",
        seconds=0,
        levels={label: _levels(levels, rows, resampler) for label, rows in found.items()},
        merge_minus_joint=against,
        seeds=seeds,
    )


def _levels(levels: Sequence[float], rows: Sequence[Matrix], resampler: Resampler) -> list[NoiseLevel]:
    found = []
    for sigma, losses in zip(levels, rows, strict=True):
        spread = float(resampler.mean(losses).std(ddof=1)) if len(losses) > 1 else None
        found.append(
            NoiseLevel(
                sigma=sigma,
                loss=resampler.estimate(losses.mean(0)),
                rise=resampler.estimate(losses.mean(0) - rows[0][0]),
                seed_spread=spread,
            )
        )
    return found
