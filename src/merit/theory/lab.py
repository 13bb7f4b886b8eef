"""The whole lab: every statement of section 4 with a number, in seconds."""

from __future__ import annotations

import numpy as np

from merit.theory.filtering import check_filtering, check_shrinkage
from merit.theory.findings import TheoryResult
from merit.theory.quadratic import check_identity
from merit.theory.slopes import check_slopes
from merit.theory.splits import compare_splits


def run_lab(*, seed: int = 0, instances: int = 60, axes: int = 1) -> TheoryResult:
    """Every check on its own random stream: leaving one out changes no other."""
    identity, filtering, shrinkage, splits = (np.random.default_rng([seed, part]) for part in range(4))
    return TheoryResult(
        seed=seed,
        identity=check_identity(identity, instances=instances),
        slopes=check_slopes(),
        filtering=check_filtering(filtering),
        shrinkage=check_shrinkage(shrinkage),
        splits=compare_splits(splits, instances=instances, axes=axes),
    )
