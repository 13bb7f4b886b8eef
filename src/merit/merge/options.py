"""What a merge does besides its inputs and weights. Part of its fingerprint: each option can change bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.config.merge import DtypeName
from merit.errors import InputError
from merit.merge.plan import Rounding
from merit.merge.weights import check_weights, exact_factors
from merit.run.record import Record

SHARD_BYTES = 5_000_000_000


class WeightRule(Record):
    """Other weights for the tensors whose name `pattern` (a regular expression) is found in; the first match counts."""

    pattern: str
    weights: list[float]


@dataclass(frozen=True)
class MergeOptions:
    """See `merge_checkpoints`."""

    base: Path | None = None
    dtype: DtypeName = "input"
    rounding: Rounding = "nearest"
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    rules: tuple[WeightRule, ...] = ()
    as_given: bool = False  # keep equal weights as they are, instead of as ones


class Factors:
    """n_k and their sum for each tensor."""

    def __init__(
        self, weights: Sequence[float], rules: Sequence[WeightRule], inputs: int, *, as_given: bool = False
    ) -> None:
        """`as_given` keeps equal weights from becoming ones.

        Raises:
            InputError: weights that cannot weigh, or a pattern that is no regular expression.
        """
        checked = check_weights(weights, inputs)
        self.default = tuple(checked if as_given else exact_factors(checked))
        self._rules: list[tuple[re.Pattern[str], tuple[float, ...]]] = []
        for rule in rules:
            try:
                pattern = re.compile(rule.pattern)
            except re.error as error:
                raise InputError(f"not a regular expression: {error}", field=f"rules.{rule.pattern}") from error
            self._rules.append((pattern, tuple(exact_factors(check_weights(rule.weights, inputs)))))
        self._used: set[str] = set()

    def of(self, name: str) -> tuple[tuple[float, ...], float]:
        """Factors and divisor of one tensor."""
        for pattern, factors in self._rules:
            if pattern.search(name):
                self._used.add(pattern.pattern)
                return factors, math.fsum(factors)
        return self.default, math.fsum(self.default)

    def check_used(self) -> None:
        """Refuses a rule that no tensor was weighed by: a misspelt one would be passed over in silence.

        Raises:
            InputError: names the pattern.
        """
        for pattern, _ in self._rules:
            if pattern.pattern not in self._used:
                raise InputError("no tensor matches this pattern first", field=f"rules.{pattern.pattern}")
