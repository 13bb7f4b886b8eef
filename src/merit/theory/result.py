"""What the theory lab finds, as one JSON record."""

from __future__ import annotations

from merit.run.record import Record


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
