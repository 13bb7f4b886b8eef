"""Curvature: do the conflict axes lie where the loss bends, and does the Hessian predict the merging gain?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.errors import InputError
from merit.base.progress import SILENT, Counter, Progress
from merit.base.words import NONE, decimal, plural
from merit.conflict.axes import centred
from merit.diagnose.check import Check, Journal, Reading, Row
from merit.diagnose.losses import Matrix
from merit.diagnose.models import BASE, MERGE, Models
from merit.diagnose.records import CheckResult
from merit.theory.quadratic import gain_of_projections

if TYPE_CHECKING:
    from merit.data.example import Encoded
    from merit.diagnose.bench import Bench
    from merit.diagnose.hessian import Flat, Hessian
    from merit.diagnose.lanczos import Lanczos
    from merit.diagnose.live import Aligned, LiveModel

_RANDOM_VECTORS = 16
_log = logging.getLogger(__name__)


class CurvatureResult(CheckResult):
    """`curvature.json`: the Hessian of the mixture's loss at θ0, or its Gauss–Newton part, called H below."""

    matrix: str = "hessian"  # or gauss_newton

    parameters: int
    tokens: int
    examples: int
    steps: int  # Hessian-vector products of Lanczos
    eigenvalues: list[float]  # largest first
    residuals: list[float]  # ‖Hu − λu‖ of each, as Lanczos bounds it
    lowest: float  # smallest Ritz value: negative where θ0 is no minimum
    trace: float
    trace_error: float  # standard error over probes
    axes: list[float]  # max_ℓ |cos(u_ℓ, conflict direction)| of each axis, lifted to parameter space
    tasks: list[float]  # the same of every dataset's gradient
    random: list[float]  # the same of random unit vectors
    z_tasks: float | None  # (mean of axes − mean of tasks) / sd of tasks
    z_random: float | None
    gain_top: float  # ½ Σ_ℓ λ_ℓ Var_w(u_ℓᵀδ) over these eigenpairs
    gain_quadratic: float  # the same over the whole spectrum: ½ Σ_i w_i (δ_i − δ̄)ᵀ H (δ_i − δ̄)
    gain_measured: float  # Σ w_i L(θ_i) − L(θ̄) on the same examples


def _depends(bench: Bench) -> Sequence[Any]:
    found = bench.conflict
    return [found.similarity.tolist(), found.axes, found.centre] if found is not None else []


def _run(bench: Bench) -> CurvatureResult:
    conflict, config = bench.measured_conflict("curvature"), bench.config
    spec = CurvatureSpec(
        datasets=[bench.calibration_examples(dataset, config.examples) for dataset in bench.datasets],
        similarity=conflict.similarity,
        folder=bench.run.diagnostic_progress("curvature").with_suffix(""),
        axes=conflict.axes,
        centre=conflict.centre,
        gauss_newton=config.matrix == "gauss_newton",
        pairs=config.eigenpairs,
        steps=config.lanczos_steps,
        probes=config.probes,
        tokens=config.hessian_tokens,
        batch_tokens=config.hessian_batch_tokens,
        seed=bench.seed,
    )
    return curvature(bench.live, bench.models, spec, journal=bench.journal, progress=bench.progress)


@dataclass(frozen=True)
class CurvatureSpec:
    """What the Hessian is of, and how closely it is looked at.

    Attributes:
        datasets: training rows of each dataset, in the order of `similarity`; the Hessian is of as many as `tokens`
            allow, in turn.
        similarity: (T, T) cosines of the run; its axes are those that the split used.
        folder: where the Lanczos basis lies until the check is done.
        axes: r.
        pairs: eigenpairs.
        steps: Hessian-vector products at most; fewer where the pairs have converged.
        probes: random probes of the trace.
    """

    datasets: Sequence[Sequence[Encoded]]
    similarity: Matrix
    folder: Path
    axes: int
    centre: bool
    pairs: int
    steps: int
    probes: int
    tokens: int
    batch_tokens: int
    gauss_newton: bool = False
    seed: int = 0


def curvature(
    live: LiveModel,
    models: Models,
    spec: CurvatureSpec,
    *,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> CurvatureResult:
    """Eigenpairs by Lanczos, their alignment with conflict, the trace, and three readings of the merging gain.

    Raises:
        InputError: more axes or pairs than there are dimensions.
        StageError: a product is not finite.
    """
    from merit.diagnose.hessian import Hessian, within_budget
    from merit.diagnose.lanczos import Lanczos

    journal = journal or Journal()
    live.set({BASE: 1.0})
    rows = within_budget(spec.datasets, spec.tokens)
    hessian = Hessian(live.model, live.trained, rows, batch_tokens=spec.batch_tokens, gauss_newton=spec.gauss_newton)
    _check_rank(spec, hessian.size)
    steps = min(max(spec.steps, spec.pairs), hessian.size)
    examples = len(hessian.rows)
    _log.info(
        "curvature: %d examples, %d tokens; up to %d products, %.1f GB of disk while it runs",
        examples,
        hessian.tokens,
        steps,
        4e-9 * (steps + 1) * hessian.size,
    )
    passes = steps + spec.probes + len(models.branches)
    with progress.bar("curvature", total=passes * examples + sum(map(len, spec.datasets)), unit="example") as bar:
        counter = Counter(bar)
        product = partial(hessian.product, advance=counter)
        lanczos = Lanczos(spec.folder, hessian.size, product, seed=spec.seed, fingerprint=journal.fingerprint)
        counter(lanczos.steps * examples)
        while lanczos.steps < steps and not lanczos.exhausted and not lanczos.converged(spec.pairs):
            counter.note(f"eigenpairs, product {lanczos.steps + 1}")
            lanczos.step()
        ritz = lanczos.ritz(spec.pairs)
        counter.note("trace")
        trace, error = hutchinson(hessian, journal, probes=spec.probes, seed=spec.seed, counter=counter)
        counter.note("alignment")
        found = alignment(hessian, lanczos, ritz.coefficients, spec, counter)
        counter.note("gain")
        weights = np.asarray(models.weights)
        projections, products = _along(hessian, lanczos, ritz.coefficients, live.aligned, models, journal, counter)
        measured = _measured(live, models, hessian)
    result = CurvatureResult(
        matrix="gauss_newton" if spec.gauss_newton else "hessian",
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


@dataclass(frozen=True)
class Directions:
    """max_ℓ |cos| with the eigenvectors, of three kinds of direction."""

    axes: list[float]
    tasks: list[float]
    random: list[float]

    @property
    def z_tasks(self) -> float | None:
        """How far conflict axes stand above a dataset's own gradient, in its standard deviations over datasets."""
        return _z(self.axes, self.tasks)

    @property
    def z_random(self) -> float | None:
        return _z(self.axes, self.random)


def alignment(
    hessian: Hessian, lanczos: Lanczos, coefficients: Matrix, spec: CurvatureSpec, counter: Counter
) -> Directions:
    """Hessian eigenvectors at θ0 against conflict axes, gradients and chance.

    Conflict axis j lifted to parameter space is Σ_t v_tj g_t / ‖g_t‖, v_j the j-th eigenvector of the similarity.

    Args:
        coefficients: (m, k) of the eigenvectors in the Lanczos basis.
    """
    values, vectors = np.linalg.eigh(centred(spec.similarity) if spec.centre else spec.similarity)
    chosen = vectors[:, np.argsort(values)[::-1][: spec.axes]]  # (T, r)
    lifted = np.zeros((chosen.shape[1], hessian.size), np.float32)
    tasks = []
    for t, rows in enumerate(spec.datasets):
        gradient = hessian.gradient(rows, spec.batch_tokens, counter)
        norm = _norm(gradient)
        if norm == 0:
            tasks.append(0.0)
            continue
        tasks.append(_largest_cosine(lanczos, coefficients, gradient))
        for axis in range(len(lifted)):
            lifted[axis] += np.float32(chosen[t, axis] / norm) * gradient
    rng = np.random.default_rng([spec.seed, 1])
    random = [
        _largest_cosine(lanczos, coefficients, rng.standard_normal(hessian.size, np.float32))
        for _ in range(_RANDOM_VECTORS)
    ]
    return Directions([_largest_cosine(lanczos, coefficients, row) for row in lifted], tasks, random)


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
    coefficients: Matrix,
    aligned: Aligned,
    models: Models,
    journal: Journal,
    counter: Counter,
) -> tuple[Matrix, Matrix]:
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


def _check_rank(spec: CurvatureSpec, size: int) -> None:
    rank = len(spec.datasets) - spec.centre
    if spec.axes > rank:
        raise InputError(
            f"{spec.axes} axes of {len(spec.datasets)} datasets: their {'centred ' if spec.centre else ''}similarity "
            f"has a rank of {rank} at most",
            field="split.axes",
        )
    if spec.pairs > size:
        raise InputError(f"{spec.pairs} eigenpairs of a model of {size} parameters", field="diagnose.eigenpairs")


def _dot(a: Flat, b: Flat) -> float:
    return float(np.dot(a.astype(np.float64), b.astype(np.float64)))


def _largest_cosine(lanczos: Lanczos, coefficients: Matrix, vector: Flat) -> float:
    norm = _norm(vector)
    if norm == 0:
        return 0.0
    return float(np.abs(coefficients.T @ lanczos.dots(vector, rows=len(coefficients))).max() / norm)


def _norm(vector: Flat) -> float:
    return float(np.sqrt(_dot(vector, vector)))


def _z(values: Sequence[float], against: Sequence[float]) -> float | None:
    spread = float(np.std(against, ddof=1)) if len(against) > 1 else 0.0
    return float((np.mean(values) - np.mean(against)) / spread) if spread > 0 else None


def _rows(result: CurvatureResult) -> list[Row]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    share = f" ({result.gain_top / result.gain_quadratic:.0%} of it)" if result.gain_quadratic > 0 else ""
    rows = [
        [
            "largest and smallest eigenvalue" + (" (Gauss–Newton)" if result.matrix == "gauss_newton" else ""),
            f"{result.eigenvalues[0]:.4g} … {result.lowest:.4g}".replace("-", "−"),
            NONE,
        ],
        ["trace", f"{result.trace:.4g} ± {result.trace_error:.2g}", NONE],
        [f"max |cos| with the top {len(result.eigenvalues)}: conflict axes", f"{mean(result.axes):.3g}", "0.133"],
        ["the same, a dataset's gradient", f"{mean(result.tasks):.3g}", "0.091 ± 0.023"],
        ["the same, a random direction", f"{mean(result.random):.2g}", "5.6e-5"],
        ["gain, measured on the Hessian's examples", f"{result.gain_measured:.4g}".replace("-", "−"), NONE],
        ["gain that the Hessian predicts", f"{result.gain_quadratic:.4g}".replace("-", "−"), NONE],
        ["gain in the eigenpairs found", f"{result.gain_top:.4g}{share}", NONE],
    ]
    if result.z_tasks is not None:
        rows.insert(5, ["conflict axes against gradients", f"z = {decimal(result.z_tasks, 1)}", "z = 1.8"])
    return rows


def _reading(result: CurvatureResult) -> Reading:
    found = (
        f"On {plural(result.examples, 'training example')} the Hessian at θ0 has eigenvalues up to "
        f"{result.eigenvalues[0]:.3g}, and its trace is {result.trace:.3g} ± {result.trace_error:.2g}."
    )
    if result.z_tasks is not None:
        aligned = "lie more along curvature than" if result.z_tasks > 2 else "cannot be told apart from"
        found += f" Conflict axes {aligned} single datasets' gradients (z = {decimal(result.z_tasks, 1)})."
    found += (
        f" The quadratic model predicts a merging gain of {decimal(result.gain_quadratic)}; "
        f"{decimal(result.gain_measured)} is measured on the same examples. The eigenpairs found account for "
        f"{decimal(result.gain_top)}."
    )
    if result.lowest < 0:
        found += (
            " The Hessian has negative eigenvalues: θ0 is no minimum of this loss, and the gain may have either sign."
        )
    return Reading(
        found,
        "Each mark is a direction, and the further right it is the more it lies along the sharpest bends of the loss "
        "at θ0; conflict axes to the right of single gradients mean that the split keeps apart what bends most.",
        "0.133 for conflict axes, 0.091 ± 0.023 for a dataset's gradient (z = 1.8), 5.6e-5 for a random direction",
    )


def _figure(result: CurvatureResult, draw: ModuleType) -> Any:
    """Largest |cos| with the top eigenvectors: conflict axes, gradients, random directions."""
    kinds = [("conflict axes", result.axes), ("datasets' gradients", result.tasks), ("random", result.random)]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": values,
            "y": [row] * len(values),
            "marker": {
                "size": 12 if row == 0 else 8,
                "color": ("--accent", "--face-1", "--muted")[row],
                "symbol": ("diamond", "circle-open", "line-ns-open")[row],
                "line": {"width": 2},
            },
            "hovertemplate": f"{name}: %{{x:.4f}}<extra></extra>",
        }
        for row, (name, values) in enumerate(kinds)
    ]
    return draw.Figure(
        id="alignment",
        title=f"Largest |cos| with the top {len(result.eigenvalues)} Hessian eigenvectors at θ0",
        alt="Dots of the largest absolute cosine with the top eigenvectors: conflict axes, gradients of single "
        "datasets, and random directions. Further right lies more along curvature.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "max |cos|"}, "rangemode": "tozero"},
            "yaxis": draw.row_axis([name for name, _ in kinds], grid=True),
        },
        table=draw.DataTable(
            ["direction", "max |cos|"], [[name, decimal(value, 4)] for name, values in kinds for value in values]
        ),
        height=250,
    )


CHECK = Check(
    title="Do the conflict axes lie where the loss bends?",
    result=CurvatureResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    uses=(
        "examples",
        "matrix",
        "eigenpairs",
        "lanczos_steps",
        "probes",
        "hessian_tokens",
        "hessian_batch_tokens",
    ),
    depends=_depends,
    order=4,
)
