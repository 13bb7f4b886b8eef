"""The chapter of `merit diagnose`: did the branches stay in one basin, and did the theory hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from merit.diagnose.records import (
    RESULTS,
    CalibrationResult,
    Check,
    CurvatureResult,
    DisplacementResult,
    Estimate,
    GainResult,
    LandscapeResult,
    LmcResult,
    PerturbationResult,
    Trajectories,
)
from merit.diagnose.verdict import verdict
from merit.diagnose.words import NEGLIGIBLE, barriers, result_rows, with_interval
from merit.report.evidence import Evidence, Reader
from merit.report.figure import DataTable, Figure, Section
from merit.report.figures.basin import connectivity_figure, landscape_figure, noise_figure
from merit.report.figures.prediction import alignment_figure, calibration_figure, displacement_figure, losses_figure
from merit.report.figures.trajectory import ways_figure
from merit.report.sections.reading import READINGS, WAYS, Reading
from merit.report.words import decimal, plural, series

ID, TITLE = "diagnostics", "Whether the basin held"


def diagnostics(evidence: Evidence) -> list[Section]:
    """The chapter, if any check was made."""
    reader = Reader(evidence.run.root)
    found = {name: reader.record(kind, evidence.run.diagnostic(name)) for name, kind in RESULTS.items()}
    results = {name: result for name, result in found.items() if result is not None}
    if not results:
        return []
    reached = verdict(results)
    header, *rows = result_rows(results)
    context = {
        "headline": reached.headline,
        "reasons": reached.reasons,
        "parts": [part for result in results.values() for part in _parts(result)],
        "table": DataTable(header, rows),
        "problems": reader.problems,
    }
    return [Section(ID, TITLE, "diagnostics", context)]


_Part = tuple[str, Figure]  # what was found, in words and as a figure


def _parts(result: Check) -> list[tuple[Reading, str, Figure]]:
    found = [(READINGS[type(result)], *_TELL[type(result)](result))]
    if isinstance(result, DisplacementResult) and result.trajectories is not None:
        found.append((WAYS, *_ways(result.trajectories)))
    return found


def _ways(found: Trajectories) -> _Part:
    text = (
        f"The paths at {plural(len(found.moments), 'moment')} of the training, from sketches of the weights. The "
        "merge's is the weighted mean of the branches' at each moment: where it would have been, had one merged then."
    )
    if found.ratio:
        text += (
            f" Joint training is {decimal(min(found.ratio), 2)} to {decimal(max(found.ratio), 2)} times as far from θ0 "
            "as the merge along the way."
        )
    return text, ways_figure(found)


def _lmc(result: LmcResult) -> _Part:
    real = barriers(result.held_out)
    highest = max(result.held_out, key=lambda segment: segment.peak.value)
    where = f"between {highest.a} and {highest.b} at t = {highest.at:.2f}: {with_interval(highest.peak)} nats"
    text = (
        f"{len(real)} of {plural(len(result.held_out), 'segment')} cross a barrier, a hill that "
        f"is neither noise nor lower than {NEGLIGIBLE:.0%} of the loss. The highest point over a chord is {where}. "
        "Where branches know nothing of each other's data, their ends are high and the middle may sag far below the "
        "chord: that is the merging gain, and no proof of a flat basin."
    )
    return text, connectivity_figure(result)


def _displacement(result: DisplacementResult) -> _Part:
    branches = [i for i, item in enumerate(result.models) if item.model.startswith("branch")]
    cosines = [result.cosines[i][j] for i in branches for j in branches if i < j]
    text = f"The updates of two branches have cosines of {decimal(min(cosines), 2)} to {decimal(max(cosines), 2)}."
    if result.ratio is not None:
        text += (
            f" The merge stays {decimal(result.ratio, 2)} times closer to θ0 than joint training. "
            "Averaging and fewer steps a branch both shorten the way; closeness alone is no merit."
        )
    return text, displacement_figure(result)


def _gain(result: GainResult) -> _Part:
    found = result.held_out
    text = (
        f"Σ w L(θ_k) − L(θ̄) is {with_interval(found.gain)} on held-out and {with_interval(result.train.gain)} on "
        f"training examples: the merge is {_than(found.gain, 'better', 'worse')} its branches on average."
    )
    if found.merge_minus_joint is not None and result.train.merge_minus_joint is not None:
        text += (
            " The merge's loss is "
            f"{_than(result.train.merge_minus_joint, 'higher', 'lower')} that of joint training on training examples "
            f"({with_interval(result.train.merge_minus_joint)}), and "
            f"{_than(found.merge_minus_joint, 'higher', 'lower')} it on held-out ones "
            f"({with_interval(found.merge_minus_joint)})."
        )
    return text, losses_figure(result)


def _perturbation(result: PerturbationResult) -> _Part:
    text = f"Every row of every matrix gets Gaussian noise of σ times its norm, {plural(result.seeds, 'draw')} a level."
    if result.merge_minus_joint:
        last = result.merge_minus_joint[-1]
        sigma = result.levels["merge"][-1].sigma
        text += (
            f" At σ = {sigma:g} the merge rises {_than(last, 'more', 'less')} joint training "
            f"({with_interval(last)} nats)."
        )
    return text, noise_figure(result)


def _curvature(result: CurvatureResult) -> _Part:
    text = (
        f"On {plural(result.examples, 'training example')} the Hessian at θ0 has eigenvalues up to "
        f"{result.eigenvalues[0]:.3g}, and its trace is {result.trace:.3g} ± {result.trace_error:.2g}."
    )
    if result.z_tasks is not None:
        aligned = "lie more along curvature than" if result.z_tasks > 2 else "cannot be told apart from"
        text += f" Conflict axes {aligned} single datasets' gradients (z = {decimal(result.z_tasks, 1)})."
    text += (
        f" The quadratic model predicts a merging gain of {decimal(result.gain_quadratic)}; "
        f"{decimal(result.gain_measured)} is measured on the same examples. The eigenpairs found account for "
        f"{decimal(result.gain_top)}."
    )
    if result.lowest < 0:
        text += (
            " The Hessian has negative eigenvalues: θ0 is no minimum of this loss, and the gain may have either sign."
        )
    return text, alignment_figure(result)


def _calibration(result: CalibrationResult) -> _Part:
    stable = [point.examples for point in result.points if point.rand == 1]
    text = (
        f"Smaller sets are parts of the largest ({result.largest}), so the last cosines are high by construction. "
        f"Groups equal those of the largest set with {series([str(n) for n in stable])} examples."
    )
    return text, calibration_figure(result)


def _landscape(result: LandscapeResult) -> _Part:
    far = max(result.off_plane.values())
    text = (
        f"A coarse grid of {len(result.x)} × {len(result.y)} points over "
        f"{plural(result.examples, 'held-out example')}. Models are shown where they project; the farthest lies "
        f"{decimal(far, 2)} off the plane."
    )
    return text, landscape_figure(result)


def _than(item: Estimate, above: str, below: str) -> str:
    if item.low > 0:
        return f"{above} than"
    return f"{below} than" if item.high < 0 else "not told apart from"


_TELL: dict[type[Check], Callable[[Any], _Part]] = {
    LmcResult: _lmc,
    DisplacementResult: _displacement,
    GainResult: _gain,
    PerturbationResult: _perturbation,
    CurvatureResult: _curvature,
    CalibrationResult: _calibration,
    LandscapeResult: _landscape,
}
