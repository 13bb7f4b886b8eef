"""Results as the lines of a table, with the published value beside each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from merit.diagnose.models import JOINT, MERGE
from merit.diagnose.records import (
    CalibrationResult,
    Check,
    CurvatureResult,
    DisplacementResult,
    Estimate,
    GainResult,
    LandscapeResult,
    LmcResult,
    PerturbationResult,
    Segment,
)

Row = list[str]
NONE = "–"
NEGLIGIBLE = 0.02  # of the loss at the ends: a lower hill is no barrier, however certain


def number(value: float, digits: int = 3) -> str:
    """With a real minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def with_interval(item: Estimate, digits: int = 3) -> str:
    """ "0.351 [0.320, 0.384]"."""
    return f"{number(item.value, digits)} [{number(item.low, digits)}, {number(item.high, digits)}]"


def barriers(segments: Sequence[Segment]) -> list[Segment]:
    """Segments with a hill that is neither noise nor negligible."""

    def is_one(segment: Segment) -> bool:
        peak = segment.peak
        return peak.low > 0 and peak.value > NEGLIGIBLE * (segment.loss[0] + segment.loss[-1]) / 2

    return [segment for segment in segments if is_one(segment)]


def result_rows(results: Mapping[str, Check]) -> list[Row]:
    """Header and rows: check, quantity, what was found, what the paper reports. Brackets are 95% intervals."""
    rows: list[Row] = [["check", "quantity", "found [95%]", "published"]]
    for name, result in results.items():
        rows += [[name, *row] for row in _ROWS[type(result)](result)]
    return rows


def _lmc(result: LmcResult) -> list[Row]:
    rows = []
    for face, segments in (("held-out", result.held_out), ("training", result.train)):
        if not segments:
            continue
        real = len(barriers(segments))
        highest = max(segments, key=lambda segment: segment.peak.value)
        published = "0 of 10" if face == "held-out" else NONE
        rows.append([f"barriers, {face} loss", f"{real} of {len(segments)}", published])
        where = f"{highest.a} – {highest.b}, t = {highest.at:.2f}"
        rows.append([f"highest over the chord ({where})", with_interval(highest.peak), "0.0"])
    return rows


def _displacement(result: DisplacementResult) -> list[Row]:
    by_model = {item.model: item.total for item in result.models}
    branches = [i for i, item in enumerate(result.models) if item.model not in (MERGE, JOINT)]
    cosines = [result.cosines[i][j] for i in branches for j in branches if i < j]
    rows = [[f"‖θ − θ0‖ of {label}", number(total), NONE] for label, total in by_model.items()]
    rows.append(["cosines between branches", f"{number(min(cosines), 2)} … {number(max(cosines), 2)}", NONE])
    if result.ratio is not None:
        rows.append(["joint ÷ merge", number(result.ratio, 2), "2.4–2.9"])
    if result.trajectories is not None and result.trajectories.ratio:
        ratio = result.trajectories.ratio
        span = f"{number(ratio[0], 2)} … {number(ratio[-1], 2)}"
        rows.append([f"joint ÷ merge along the way, {len(ratio)} moments", span, "2.4–2.9"])
    return rows


def _gain(result: GainResult) -> list[Row]:
    rows = []
    for face, found in (("held-out", result.held_out), ("training", result.train)):
        rows.append([f"Σ w L(θ_k) − L(merge), {face}", with_interval(found.gain), "≥ 0"])
        rows.append([f"merge minus θ0, {face} loss", with_interval(found.merge_minus_base), NONE])
        if found.merge_minus_joint is not None:
            published = "> 0" if face == "training" else "better score"
            rows.append([f"merge minus joint, {face} loss", with_interval(found.merge_minus_joint), published])
    rows.append(["held-out minus training, merge", with_interval(result.gap_merge), NONE])
    if result.gap_joint is not None:
        rows.append(["held-out minus training, joint", with_interval(result.gap_joint), NONE])
    return rows


def _perturbation(result: PerturbationResult) -> list[Row]:
    rows = []
    for label, levels in result.levels.items():
        worst = levels[-1]
        rows.append(
            [
                f"rise of loss under σ = {worst.sigma:g}, {label}",
                with_interval(worst.rise),
                "climbs" if label == JOINT else "flat",
            ]
        )
    if result.merge_minus_joint:
        rows.append(["rise of merge minus rise of joint", with_interval(result.merge_minus_joint[-1]), "< 0"])
    return rows


def _curvature(result: CurvatureResult) -> list[Row]:
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
        rows.insert(5, ["conflict axes against gradients", f"z = {number(result.z_tasks, 1)}", "z = 1.8"])
    return rows


PUBLISHED_COSINES = {50: 0.683, 100: 0.762, 150: 0.814, 200: 0.847, 300: 0.891, 500: 0.940, 700: 0.968}


def _calibration(result: CalibrationResult) -> list[Row]:
    return [
        [
            f"cosine of {point.examples} examples to {result.largest}; Rand index of groups",
            f"{point.cosine:.3f} ± {point.cosine_sd:.3f}; {number(point.rand, 2)}",
            f"{PUBLISHED_COSINES[point.examples]:.3f} to 1,000" if point.examples in PUBLISHED_COSINES else NONE,
        ]
        for point in result.points
    ]


def _landscape(result: LandscapeResult) -> list[Row]:
    flat = [value for row in result.loss for value in row]
    return [["loss on the plane, lowest … highest", f"{number(min(flat))} … {number(max(flat))}", NONE]]


_ROWS: dict[type[Check], Callable[[Any], list[Row]]] = {
    LmcResult: _lmc,
    DisplacementResult: _displacement,
    GainResult: _gain,
    PerturbationResult: _perturbation,
    CurvatureResult: _curvature,
    CalibrationResult: _calibration,
    LandscapeResult: _landscape,
}
