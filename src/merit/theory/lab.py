"""Every statement of the paper's section 4 with a number, in seconds: what holds in a quadratic model, and how far.

**Theorem 1** is an identity: both sides are computed separately.

**Proposition 1**: the gain of a split along a conflict direction grows as λ³α², early in training. Two branches have
their optima at +α and −α along one eigenvector of curvature λ. After τ steps δ = ±(1 − (1 − ηλ)^τ) α, so the gain is
½ λ (1 − (1 − ηλ)^τ)² α². Early, 1 − (1 − ηλ)^τ ≈ ητλ: one λ is the curvature, two are the speed. Once ητλ > 1 the
branches arrive, and the gain grows as λ¹. The power of α has no such limit while the loss is quadratic. It ends where α
leaves the basin, shown with a loss λ s² log cosh((x − c)/s), which is quadratic only within its width s.

**Section 4.3** says which directions an average keeps (spectral filtering) and how far it goes (norm shrinkage). The
paper writes κ_eff ≪ κ without a formula that could be checked. Ours: ρ_ℓ = (u_ℓᵀδ̄)² / Σ_i w_i (u_ℓᵀδ_i)² is the share
of the branches' energy along u_ℓ that averaging keeps (both are means over draws), λ_ℓ ρ_ℓ the curvature that the merge
still feels, and κ_eff their condition number. It is small if conflict grows with curvature, and equals κ if conflict is
spread evenly: the filter is the conflict's, not the average's. The mean of K equal branches keeps at least 1/K of
independent conflict, so κ_eff ≥ κ/K: averaging four branches cannot improve the conditioning more than fourfold.
"""

from __future__ import annotations

import numpy as np

from merit.base.record import Record
from merit.theory.quadratic import (
    Quadratic,
    Vector,
    measured_gain,
    predicted_gain,
    progress,
    random_tasks,
    rotation,
    spectrum,
)
from merit.theory.splits import SplitComparison, compare_splits


class IdentityCheck(Record):
    """Theorem 1 on random instances, with both sides computed separately."""

    instances: int
    largest_error: float  # |left − right| / right, the largest of all instances
    negative_with_indefinite: int  # instances with an indefinite H whose gain is negative: H ⪰ 0 is needed for the sign


class SlopeCheck(Record):
    """Proposition 1: the log-log slope of the gain against one quantity, with all others fixed."""

    quantity: str  # lambda or alpha
    expected: float
    early: float  # fitted where ητλ ≤ 0.01
    late: float  # the same where ητλ ≥ 10: branches have converged
    x: list[float]  # ητλ for lambda, α/width for alpha
    local: list[float]  # local slope at x
    leaves_band: float  # x at which the local slope is 0.05 from `expected`
    bends: float  # x at which it is 1 below `expected`


class Filtering(Record):
    """Spectral filtering for one profile of conflict over the spectrum."""

    profile: float  # conflict's standard deviation ∝ λ^profile
    condition: float  # κ
    effective_condition: float  # κ_eff of λ_ℓ · ρ_ℓ, ρ_ℓ the share of the branches' energy that the mean keeps
    survival: list[float]  # ρ_ℓ, from the largest λ to the smallest


class Shrinkage(Record):
    """‖θ_joint − θ0‖ ÷ ‖θ̄ − θ0‖ at equal tokens, K branches of τ/K steps each."""

    progress: list[float]  # ητλ_max of the joint run
    ratio: list[float]
    equals_early_stopping: float  # ‖θ̄ − θ_joint(τ/K)‖ / ‖θ̄ − θ0‖ with one shared H: zero up to rounding


class TheoryResult(Record):
    """All results of the lab."""

    seed: int
    identity: IdentityCheck
    slopes: list[SlopeCheck]
    filtering: list[Filtering]
    shrinkage: Shrinkage
    splits: SplitComparison


def check_identity(
    rng: np.random.Generator, *, instances: int = 50, size: int = 32, branches: int = 4
) -> IdentityCheck:
    """Left side from losses of a dense H, right side from its eigenpairs; any branches, weights, slope and H.

    The identity needs nothing but a quadratic loss; that the gain is never negative needs H ⪰ 0.
    """
    worst = 0.0
    negative = 0
    for _ in range(instances):
        values = spectrum(size, condition=float(10 ** rng.uniform(0, 6)))
        turn = rotation(size, rng)
        hessian = (turn * values) @ turn.T
        task = Quadratic((hessian + hessian.T) / 2, rng.standard_normal(size), float(rng.standard_normal()))
        deltas = rng.standard_normal((branches, size))
        weights = rng.dirichlet(np.ones(branches))
        right = predicted_gain(*np.linalg.eigh(task.hessian), deltas, weights)
        worst = max(worst, abs(measured_gain(task, deltas, weights) - right) / right)
        signs = np.where(np.arange(size) < size // 2, -1.0, 1.0)
        indefinite = Quadratic((turn * (values * signs)) @ turn.T, task.slope)
        negative += measured_gain(indefinite, deltas, weights) < 0
    return IdentityCheck(instances=instances, largest_error=worst, negative_with_indefinite=int(negative))


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
    # Beyond the basin the gain may fall to zero; its logarithm is followed up to there.
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


_PROFILES = (0.0, 0.25, 0.5)


def check_filtering(
    rng: np.random.Generator, *, size: int = 32, branches: int = 4, draws: int = 2000, condition: float = 1e3
) -> list[Filtering]:
    """κ_eff for conflict that is even over the spectrum, and for conflict that grows with curvature."""
    values = spectrum(size, condition=condition)
    moved = progress(values, rate=0.1, steps=10)
    found = []
    for profile in _PROFILES:
        strength = 3.0 * values**profile
        optima = 1.0 + strength * rng.standard_normal((draws, branches, size))
        deltas = moved * optima  # θ0 at the origin, in the eigenbasis
        kept = (deltas.mean(1) ** 2).mean(0) / (deltas**2).mean((0, 1))
        felt = values * kept
        found.append(
            Filtering(
                profile=profile,
                condition=float(values.max() / values.min()),
                effective_condition=float(felt.max() / felt.min()),
                survival=kept.tolist(),
            )
        )
    return found


def check_shrinkage(rng: np.random.Generator, *, branches: int = 4, draws: int = 20) -> Shrinkage:
    """Joint training against the merge at equal tokens, in one shared H, for growing budgets.

    With one H, gradient descent is linear: the merge of K branches is exactly joint training stopped after τ/K steps,
    whatever the partition. The ratio lies between 1 (all has converged) and K (nothing has).
    """
    rate, budgets = 0.1, np.geomspace(0.1, 1e4, 11)
    ratios = np.zeros(len(budgets))
    worst = 0.0
    for _ in range(draws):
        tasks = random_tasks(rng, datasets=4 * branches)
        groups = np.arange(4 * branches).reshape(branches, 4)
        weights = np.array([tasks.tokens[group].sum() for group in groups]) / tasks.tokens.sum()
        for index, budget in enumerate(budgets):
            steps = budget / rate
            deltas = np.stack([tasks.train(group.tolist(), rate=rate, steps=steps / branches) for group in groups])
            merged = weights @ deltas
            joint = tasks.train(None, rate=rate, steps=steps)
            stopped = tasks.train(None, rate=rate, steps=steps / branches)
            ratios[index] += np.linalg.norm(joint) / np.linalg.norm(merged) / draws
            worst = max(worst, float(np.linalg.norm(merged - stopped) / np.linalg.norm(merged)))
    return Shrinkage(progress=budgets.tolist(), ratio=ratios.tolist(), equals_early_stopping=worst)


def run_lab(*, seed: int = 0, instances: int = 60, axes: int = 1) -> TheoryResult:
    """Runs every check on its own random stream, so that leaving one out changes no other."""
    identity, filtering, shrinkage, splits = (np.random.default_rng([seed, part]) for part in range(4))
    return TheoryResult(
        seed=seed,
        identity=check_identity(identity, instances=instances),
        slopes=check_slopes(),
        filtering=check_filtering(filtering),
        shrinkage=check_shrinkage(shrinkage),
        splits=compare_splits(splits, instances=instances, axes=axes),
    )


def lab_rows(result: TheoryResult) -> list[list[str]]:
    """Header and rows: statement, what the theory says, what was found."""
    slopes = {slope.quantity: slope for slope in result.slopes}
    lam, alpha = slopes["lambda"], slopes["alpha"]
    shrink = result.shrinkage
    rows = [
        ["statement", "expected", "found"],
        ["Theorem 1: left minus right side, relative", "0", f"{result.identity.largest_error:.1e}"],
        ["Proposition 1: power of λ, early (ητλ ≤ 0.01)", "3.00", f"{lam.early:.3f}"],
        ["the same, branches converged (ητλ ≥ 10)", "1.00", f"{lam.late:.3f}"],
        ["power of λ falls to 2 at ητλ", "1.26", f"{lam.bends:.2f}"],
        ["Proposition 1: power of α", "2.00", f"{alpha.early:.3f}"],
        ["power of α falls to 1 at α / basin width", "–", f"{alpha.bends:.2f}"],
    ]
    for item in result.filtering:
        rows.append(
            [
                f"κ_eff, conflict ∝ λ^{item.profile:g} (κ = {item.condition:.0f})",
                "≪ κ",
                f"{item.effective_condition:.0f}",
            ]
        )
    for index in (0, len(shrink.ratio) // 2, len(shrink.ratio) - 1):
        rows.append(
            [f"‖joint‖ ÷ ‖merge‖ at ητλ_max = {shrink.progress[index]:.3g}", "> 1", f"{shrink.ratio[index]:.2f}"]
        )
    rows.append(["merge against joint stopped after 1/K of the steps", "0", f"{shrink.equals_early_stopping:.1e}"])
    return rows


def lab_sentences(result: TheoryResult) -> list[str]:
    """The meaning of the tables, in sentences."""
    splits = result.splits
    by_name = {score.splitter: score for score in splits.scores}
    pca = by_name["pca"]
    lowest = min(splits.scores, key=lambda score: score.loss_over_random)
    return [
        f"Conflict axes find the gain: {pca.gain_over_random:.1f} times that of random groups over {splits.instances} "
        f"instances of {splits.datasets} datasets. k-means does not balance tokens, and may exceed the balanced best.",
        "The published centring (columns) and the doubly centred matrix cut alike: their groups have an adjusted Rand "
        f"index of {splits.alike['pca both']:.2f}, and gain {pca.gain_over_random:.2f} and "
        f"{by_name['pca both'].gain_over_random:.2f} times what random groups do.",
        "A larger gain is not a better merge. Where all datasets share one Hessian, every split gives the same merge "
        f"(L(θ̄) differs by {splits.merged_loss_spread:.0e} at most), and that merge is joint training stopped early.",
        f"Where each dataset has its own Hessian, the lowest loss of the merge comes from `{lowest.splitter}` "
        f"({lowest.loss_over_random:.4f} of random; pca {pca.loss_over_random:.4f}).",
    ]
