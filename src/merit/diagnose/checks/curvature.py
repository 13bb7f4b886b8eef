"""Curvature: do the conflict axes lie where the loss bends, and does the Hessian predict the merging gain?"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.errors import InputError
from merit.base.progress import Counter
from merit.base.words import NONE, decimal, plural
from merit.config.sections import centre_mark
from merit.conflict.axes import decompose
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.models import BASE, MERGE, Models
from merit.diagnose.records import CheckResult
from merit.theory.quadratic import gain_of_projections

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench, Conflict
    from merit.diagnose.hessian import Flat, Hessian
    from merit.diagnose.lanczos import Ritz
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
    return [found.similarity.tolist(), found.axes, centre_mark(found.centre)] if found is not None else []


def _run(bench: Bench) -> CurvatureResult:
    """Eigenpairs by Lanczos, their alignment with conflict, the trace, and three readings of the merging gain.

    Raises:
        InputError: no measured conflict, or more axes or pairs than there are dimensions.
        StageError: a product is not finite.
    """
    from merit.diagnose.hessian import Hessian, within_budget
    from merit.diagnose.lanczos import Lanczos

    conflict, config = bench.measured_conflict("curvature"), bench.config
    live, models, journal = bench.live, bench.models, bench.journal
    datasets = [bench.calibration_examples(dataset, config.examples) for dataset in bench.datasets]
    live.set({BASE: 1.0})
    rows = within_budget(datasets, config.hessian_tokens)
    hessian = Hessian(
        live.model,
        live.trained,
        rows,
        batch_tokens=config.hessian_batch_tokens,
        gauss_newton=config.matrix == "gauss_newton",
    )
    _check_rank(conflict, len(datasets))
    if config.eigenpairs > hessian.size:
        raise InputError(
            f"{config.eigenpairs} eigenpairs of a model of {hessian.size} parameters", field="diagnose.eigenpairs"
        )
    steps = min(max(config.lanczos_steps, config.eigenpairs), hessian.size)
    _log.info(
        "curvature: %d examples, %d tokens; up to %d products, %.1f GB of disk while it runs",
        len(rows),
        hessian.tokens,
        steps,
        4e-9 * (steps + 1) * hessian.size,
    )
    passes = steps + config.probes + len(models.branches)
    with bench.progress.bar("curvature", total=passes * len(rows) + sum(map(len, datasets)), unit="example") as bar:
        counter = Counter(bar)
        product = partial(hessian.product, advance=counter)
        folder = bench.run.diagnostic_progress("curvature").with_suffix("")  # holds the basis until the check is done
        lanczos = Lanczos(folder, hessian.size, product, seed=bench.seed, fingerprint=journal.fingerprint)
        counter(lanczos.steps * len(rows))
        while lanczos.steps < steps and not lanczos.exhausted and not lanczos.converged(config.eigenpairs):
            counter.note(f"eigenpairs, product {lanczos.steps + 1}")
            lanczos.step()
        ritz = lanczos.ritz(config.eigenpairs)
        counter.note("trace")

        def probe(index: int) -> float:
            signs = np.random.default_rng([bench.seed, 2, index]).integers(0, 2, hessian.size, np.int8)
            return hessian.along((2 * signs - 1).astype(np.float32), counter)

        probes = [journal.get(f"probe {index}", partial(probe, index)) for index in range(config.probes)]
        counter.note("alignment")
        gradients = (hessian.gradient(examples, counter) for examples in datasets)
        tasks, axes = _conflict_cosines(hessian, ritz, gradients, conflict)
        rng = np.random.default_rng([bench.seed, 1])
        random = [ritz.largest_cosine(rng.standard_normal(hessian.size, np.float32)) for _ in range(_RANDOM_VECTORS)]
        counter.note("gain")
        projections, products = [], []
        for label in models.branch_labels:  # one branch in memory at a time
            apart = _apart(live.aligned, label, models, hessian)
            projections.append(ritz.along(apart))
            products.append(journal.get(f"product {label}", partial(hessian.along, apart, counter)))
        weights = np.asarray(models.weights)
        result = CurvatureResult(
            matrix=config.matrix,
            parameters=hessian.size,
            tokens=hessian.tokens,
            examples=len(rows),
            steps=lanczos.steps,
            eigenvalues=ritz.values.tolist(),
            residuals=ritz.residuals.tolist(),
            lowest=ritz.lowest,
            # Hutchinson: E zᵀHz = tr H for random signs z.
            trace=float(np.mean(probes)),
            trace_error=float(np.std(probes, ddof=1) / np.sqrt(len(probes))),
            axes=axes,
            tasks=tasks,
            random=random,
            z_tasks=_z(axes, tasks),
            z_random=_z(axes, random),
            gain_top=gain_of_projections(ritz.values, np.array(projections), weights),
            gain_quadratic=float(0.5 * weights @ np.array(products)),
            gain_measured=_measured_gain(live, models, hessian),
        )
    lanczos.remove()
    return result


def _conflict_cosines(
    hessian: Hessian, ritz: Ritz, gradients: Iterable[Flat], conflict: Conflict
) -> tuple[list[float], list[float]]:
    """max_ℓ |cos| with the Hessian's eigenvectors: of every dataset's gradient at θ0, and of every conflict axis.

    Conflict axis j lifted to parameter space is Σ_t z_tj g_t / ‖g_t‖, z_j the scores along it.
    """
    chosen = decompose(conflict.similarity, conflict.centre)[1][:, : conflict.axes]  # (T, r)
    lifted = np.zeros((chosen.shape[1], hessian.size), np.float32)
    tasks = []
    for t, gradient in enumerate(gradients):
        tasks.append(ritz.largest_cosine(gradient))
        norm = np.linalg.norm(gradient.astype(np.float64))
        for axis in range(len(lifted) if norm else 0):
            lifted[axis] += np.float32(chosen[t, axis] / norm) * gradient
    return tasks, [ritz.largest_cosine(row) for row in lifted]


def _apart(aligned: Aligned, label: str, models: Models, hessian: Hessian) -> Flat:
    """(n,) θ_i − θ̄. θ̄ is the exact weighted mean of the branches, and not the merge as it was rounded."""
    out = np.zeros(hessian.size, np.float32)
    labels = models.branch_labels
    for name, start, block in aligned.blocks():
        if name in hessian.offsets:
            mean = sum(weight * block[other] for weight, other in zip(models.weights, labels, strict=True))
            at = hessian.offsets[name] + start
            out[at : at + len(block[label])] = block[label] - mean
    return out


def _measured_gain(live: LiveModel, models: Models, hessian: Hessian) -> float:
    losses = {}
    for label in (*models.branch_labels, MERGE):
        live.set({label: 1.0})
        losses[label] = hessian.loss()
    return sum(w * losses[label] for w, label in zip(models.weights, models.branch_labels, strict=True)) - losses[MERGE]


def _check_rank(conflict: Conflict, datasets: int) -> None:
    rank = datasets - (conflict.centre != "none")
    if conflict.axes > rank:
        raise InputError(
            f"{conflict.axes} axes of {datasets} datasets: their centred similarity has a rank of {rank} at most",
            field="split.axes",
        )


def _z(values: Sequence[float], against: Sequence[float]) -> float | None:
    """How far the mean of `values` lies above that of `against`, in standard deviations of `against`."""
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
        "0.133 for conflict axes, 0.091 ± 0.023 for a dataset's gradient (so z = 1.8), 5.6e-5 for a random direction",
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


def _tracked(result: CurvatureResult) -> dict[str, float]:
    gains = {"gain_top": result.gain_top, "gain_quadratic": result.gain_quadratic, "gain": result.gain_measured}
    return gains | {"trace": result.trace, "largest_eigenvalue": result.eigenvalues[0]}


CHECK = Check(
    title="Do the conflict axes lie where the loss bends?",
    result=CurvatureResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    tracked=_tracked,
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
