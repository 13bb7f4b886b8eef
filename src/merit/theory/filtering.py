"""Section 4.3: which directions an average keeps (spectral filtering), and how far it goes (norm shrinkage).

The paper writes κ_eff ≪ κ without a formula that could be checked. Ours: ρ_ℓ = (u_ℓᵀδ̄)² / Σ_i w_i (u_ℓᵀδ_i)² is the
share of the branches' energy along u_ℓ that averaging keeps (both means over draws), λ_ℓ ρ_ℓ the curvature that the
merge still feels, κ_eff their condition number. It is small when conflict grows with curvature, and equals κ when
conflict is spread evenly: the filter is the conflict's, not the average's. Of independent conflict the mean of K equal
branches keeps 1/K at least, so κ_eff ≥ κ/K: averaging four branches cannot improve the conditioning more than fourfold.
"""

from __future__ import annotations

import numpy as np

from merit.theory.findings import Filtering, Shrinkage
from merit.theory.quadratic import spectrum
from merit.theory.tasks import progress, random_tasks

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
