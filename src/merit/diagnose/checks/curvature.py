"""Curvature: do the conflict axes lie where the loss bends, and does the Hessian predict the merging gain?"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from merit.base.words import NONE, decimal, plural
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench


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
    from merit.diagnose.curvature import CurvatureSpec, curvature

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
