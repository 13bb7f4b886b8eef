"""Proposition 1: the gain of a split along a conflict direction grows as λ³α², early in training.

Two branches, optima +α and −α along one eigenvector of curvature λ. After τ steps δ = ±(1 − (1 − ηλ)^τ) α, so the gain
is ½ λ (1 − (1 − ηλ)^τ)² α². Early, 1 − (1 − ηλ)^τ ≈ ητλ: one λ is the curvature, two are the speed. Once ητλ > 1 the
branches arrive, and the gain grows as λ¹. The power of α has no such limit as long as the loss is quadratic; it ends
where α leaves the basin, shown with a loss λ s² log cosh((x − c)/s) that is quadratic only within its width s.
"""

from __future__ import annotations

import numpy as np

from merit.theory.findings import SlopeCheck
from merit.theory.quadratic import Quadratic, Vector, measured_gain
from merit.theory.tasks import progress

RATE = 1e-4
STEPS = 1e3  # ητ = 0.1
EARLY, LATE = 1e-2, 10.0  # of ητλ
_BAND, _BEND = 0.05, 1.0


def check_slopes() -> list[SlopeCheck]:
    """Both powers of Proposition 1, and where each ends."""
    return [_lambda_slope(), _alpha_slope()]


def two_branch_gain(curvature: float, conflict: float) -> float:
    """Gain of two equal branches, from their losses."""
    moved = float(progress(np.array([curvature]), rate=RATE, steps=STEPS)[0]) * conflict
    mixture = Quadratic(np.array([[curvature]]), np.zeros(1), 0.0)  # the mean of both tasks' losses, but a constant
    return measured_gain(mixture, np.array([[moved], [-moved]]), np.array([0.5, 0.5]))


def _lambda_slope() -> SlopeCheck:
    x = np.geomspace(1e-4, 1e2, 241)  # ητλ; ηλ stays below 0.1
    gain = np.array([two_branch_gain(value / (RATE * STEPS), 1.0) for value in x])
    return _check("lambda", 3.0, x, gain, _fit(x, gain, x <= EARLY), _fit(x, gain, x >= LATE))


def _alpha_slope() -> SlopeCheck:
    strengths = np.geomspace(1e-3, 1e3, 25)
    early, late = (
        _fit(
            strengths,
            np.array([two_branch_gain(place / (RATE * STEPS), strength) for strength in strengths]),
            np.ones(25, bool),
        )
        for place in (EARLY, LATE)
    )
    x = np.geomspace(1e-2, 3, 241)  # α / s
    moved = EARLY * np.tanh(x)
    gain = 0.5 * (_log_cosh(moved - x) + _log_cosh(moved + x)) - _log_cosh(x)
    return _check("alpha", 2.0, x, gain, early, late)


def _check(quantity: str, expected: float, x: Vector, gain: Vector, early: float, late: float) -> SlopeCheck:
    # Beyond the basin the gain itself may end; its logarithm is followed as far as there is one.
    last = int(np.argmax(gain <= 0)) if (gain <= 0).any() else len(gain)
    local = np.gradient(np.log(gain[:last]), np.log(x[:last]))
    return SlopeCheck(
        quantity=quantity,
        expected=expected,
        early=early,
        late=late,
        x=x[:last:8].tolist(),
        local=local[::8].tolist(),
        leaves_band=_first(x[:last], local, expected - _BAND),
        bends=_first(x[:last], local, expected - _BEND),
    )


def _fit(x: Vector, gain: Vector, where: np.ndarray) -> float:
    return float(np.polyfit(np.log(x[where]), np.log(gain[where]), 1)[0])


def _first(x: Vector, local: Vector, level: float) -> float:
    return float(x[int(np.argmax(local <= level))])


def _log_cosh(x: Vector) -> Vector:
    found: Vector = np.logaddexp(x, -x) - np.log(2)
    return found
