"""The Hessian at θ0: its largest eigenpairs, its trace, and the merging gain it predicts against the measured one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.logging import get_logger
from merit.base.progress import SILENT, Counter, Progress
from merit.data.example import Encoded
from merit.diagnose.aligned import Aligned
from merit.diagnose.alignment import alignment
from merit.diagnose.hessian import Flat, Hessian, within_budget
from merit.diagnose.journal import Journal
from merit.diagnose.lanczos import Lanczos
from merit.diagnose.live import LiveModel
from merit.diagnose.models import BASE, MERGE, Models
from merit.diagnose.records import CurvatureResult
from merit.theory.quadratic import gain_of_projections

_log = get_logger(__name__)


def curvature(
    live: LiveModel,
    models: Models,
    datasets: Sequence[Sequence[Encoded]],
    similarity: NDArray[np.float64],
    folder: Path,
    *,
    axes: int,
    centre: bool,
    pairs: int,
    steps: int,
    probes: int,
    tokens: int,
    batch_tokens: int,
    gauss_newton: bool = False,
    seed: int = 0,
    fingerprint: str = "",
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> CurvatureResult:
    """Eigenpairs by Lanczos, their alignment with conflict, the trace, and three readings of the merging gain.

    Args:
        datasets: training rows of each dataset, in the order of `similarity`; the Hessian is of as many as `tokens`
            allow, in turn.
        folder: where the Lanczos basis lies until the check is done.
        steps: Hessian-vector products at most; fewer where the pairs have converged.

    Raises:
        InputError: more axes or pairs than there are dimensions.
        StageError: a product is not finite.
    """
    journal = journal or Journal()
    live.set({BASE: 1.0})
    rows = within_budget(datasets, tokens)
    hessian = Hessian(live.model, live.trained, rows, batch_tokens=batch_tokens, gauss_newton=gauss_newton)
    _check_rank(axes, len(datasets), centre, pairs, hessian.size)
    steps = min(max(steps, pairs), hessian.size)
    examples = len(hessian.rows)
    _log.info(
        "curvature: %d examples, %d tokens; up to %d products, %.1f GB of disk while it runs",
        examples,
        hessian.tokens,
        steps,
        4e-9 * (steps + 1) * hessian.size,
    )
    passes = steps + probes + len(models.branches)
    with progress.bar("curvature", total=passes * examples + sum(map(len, datasets)), unit="example") as bar:
        counter = Counter(bar)
        lanczos = Lanczos(
            folder, hessian.size, partial(hessian.product, advance=counter), seed=seed, fingerprint=fingerprint
        )
        counter(lanczos.steps * examples)
        while lanczos.steps < steps and not lanczos.exhausted and not lanczos.converged(pairs):
            counter.note(f"eigenpairs, product {lanczos.steps + 1}")
            lanczos.step()
        ritz = lanczos.ritz(pairs)
        counter.note("trace")
        trace, error = hutchinson(hessian, journal, probes=probes, seed=seed, counter=counter)
        counter.note("alignment")
        found = alignment(
            hessian,
            lanczos,
            ritz.coefficients,
            datasets,
            similarity,
            axes=axes,
            centre=centre,
            batch_tokens=batch_tokens,
            seed=seed,
            advance=counter,
        )
        counter.note("gain")
        weights = np.asarray(models.weights)
        projections, products = _along(hessian, lanczos, ritz.coefficients, live.aligned, models, journal, counter)
        measured = _measured(live, models, hessian)
    result = CurvatureResult(
        fingerprint="",
        seconds=0,
        matrix="gauss_newton" if gauss_newton else "hessian",
        parameters=hessian.size,
        tokens=hessian.tokens,
        examples=examples,
        steps=lanczos.steps,
        eigenvalues=ritz.values.tolist(),
        residuals=ritz.residuals.tolist(),
        lowest=ritz.lowest,
        trace=trace,
        trace_error=error,
        axes=found.axes,
        tasks=found.tasks,
        random=found.random,
        z_tasks=found.z_tasks,
        z_random=found.z_random,
        gain_top=gain_of_projections(ritz.values, projections, weights),
        gain_quadratic=float(0.5 * weights @ products),
        gain_measured=measured,
    )
    lanczos.remove()
    return result


def hutchinson(hessian: Hessian, journal: Journal, *, probes: int, seed: int, counter: Counter) -> tuple[float, float]:
    """Estimate of tr H from random signs z, E zᵀHz = tr H, and its standard error."""

    def probe(index: int) -> float:
        signs = np.random.default_rng([seed, 2, index]).integers(0, 2, hessian.size, np.int8)
        z = (2 * signs - 1).astype(np.float32)
        return _curvature_along(hessian, z, counter)

    found = np.array([journal.get(f"probe {index}", partial(probe, index)) for index in range(probes)])
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(probes))


def _along(
    hessian: Hessian,
    lanczos: Lanczos,
    coefficients: NDArray[np.float64],
    aligned: Aligned,
    models: Models,
    journal: Journal,
    counter: Counter,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K, k) u_ℓᵀ(θ_i − θ̄), and (K,) (θ_i − θ̄)ᵀ H (θ_i − θ̄) at θ0, one branch in memory at a time.

    θ̄ is the exact weighted mean of the branches, and not the merge as it was rounded.
    """
    projections, products = [], []
    for label in models.branch_labels:
        apart = _apart(aligned, label, models, hessian)
        projections.append(coefficients.T @ lanczos.dots(apart, rows=len(coefficients)))
        products.append(journal.get(f"product {label}", partial(_curvature_along, hessian, apart, counter)))
    return np.array(projections), np.array(products)


def _curvature_along(hessian: Hessian, vector: Flat, counter: Counter) -> float:
    return _dot(vector, hessian.product(vector, counter))


def _apart(aligned: Aligned, label: str, models: Models, hessian: Hessian) -> Flat:
    out = np.zeros(hessian.size, np.float32)
    labels = models.branch_labels
    for name, start, block in aligned.blocks():
        if name in hessian.offsets:
            mean = sum(weight * block[other] for weight, other in zip(models.weights, labels, strict=True))
            at = hessian.offsets[name] + start
            out[at : at + len(block[label])] = block[label] - mean
    return out


def _measured(live: LiveModel, models: Models, hessian: Hessian) -> float:
    def loss(label: str) -> float:
        live.set({label: 1.0})
        return hessian.loss()

    parts = sum(w * loss(label) for w, label in zip(models.weights, models.branch_labels, strict=True))
    return float(parts - loss(MERGE))


def _check_rank(axes: int, datasets: int, centre: bool, pairs: int, size: int) -> None:
    if axes > datasets - centre:
        raise InputError(
            f"{axes} axes of {datasets} datasets: their {'centred ' if centre else ''}similarity has a rank of "
            f"{datasets - centre} at most",
            field="split.axes",
        )
    if pairs > size:
        raise InputError(f"{pairs} eigenpairs of a model of {size} parameters", field="diagnose.eigenpairs")


def _dot(a: Flat, b: Flat) -> float:
    return float(np.dot(a.astype(np.float64), b.astype(np.float64)))
