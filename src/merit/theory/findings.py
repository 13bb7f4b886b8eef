"""What the theory lab finds, as one JSON record."""

from __future__ import annotations

from merit.base.record import Record


class IdentityCheck(Record):
    """Theorem 1 on random instances: both sides computed on separate ways."""

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


class SplitterScore(Record):
    """One splitter over all instances."""

    splitter: str
    gain_share: float  # share of instances in which its gain is the largest of the splitters compared
    gain_captured: float | None  # mean of gain ÷ the best possible gain of any partition as balanced
    gain_over_random: float  # mean of gain ÷ mean gain of random splits
    loss_share: float  # share of instances in which its merge has the lowest mixture loss (own curvatures)
    loss_over_random: float  # mean of L(θ̄) ÷ mean L(θ̄) of random splits (own curvatures)


class SplitComparison(Record):
    """Splitters against each other on random instances."""

    instances: int
    datasets: int
    groups: int
    scores: list[SplitterScore]
    merged_loss_spread: float  # with one shared H: largest relative difference of L(θ̄) between any two splits


class TheoryResult(Record):
    """Everything the lab prints."""

    seed: int
    identity: IdentityCheck
    slopes: list[SlopeCheck]
    filtering: list[Filtering]
    shrinkage: Shrinkage
    splits: SplitComparison


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


def split_rows(splits: SplitComparison) -> list[list[str]]:
    """Header and a row a splitter."""
    rows = [["splitter", "largest gain in", "of the best", "gain ÷ random", "lowest L(θ̄) in", "L(θ̄) ÷ random"]]
    for score in splits.scores:
        captured = "–" if score.gain_captured is None else f"{score.gain_captured:.2f}"
        rows.append(
            [
                score.splitter,
                f"{score.gain_share:.0%}",
                captured,
                f"{score.gain_over_random:.2f}",
                f"{score.loss_share:.0%}",
                f"{score.loss_over_random:.4f}",
            ]
        )
    return rows


def lab_sentences(result: TheoryResult) -> list[str]:
    """What the tables mean."""
    splits = result.splits
    by_name = {score.splitter: score for score in splits.scores}
    pca = by_name["pca"]
    lowest = min(splits.scores, key=lambda score: score.loss_over_random)
    return [
        f"Conflict axes find the gain: {pca.gain_over_random:.1f} times that of random groups over {splits.instances} "
        f"instances of {splits.datasets} datasets. k-means does not balance tokens, and may exceed the balanced best.",
        "A larger gain is not a better merge. Where all datasets share one Hessian, every split gives the same merge "
        f"(L(θ̄) differs by {splits.merged_loss_spread:.0e} at most), and that merge is joint training stopped early.",
        f"Where each dataset has its own Hessian, the lowest loss of the merge comes from `{lowest.splitter}` "
        f"({lowest.loss_over_random:.4f} of random; pca {pca.loss_over_random:.4f}).",
    ]
