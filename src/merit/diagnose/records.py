"""What the results of several checks share. No torch here, so that the report can read them."""

from __future__ import annotations

from merit.base.record import Record, Sealed
from merit.base.words import decimal


class Estimate(Record):
    """A value with the 95% interval of a bootstrap over examples (within each dataset, paired between models)."""

    value: float
    low: float
    high: float


class CheckResult(Sealed):
    """What every check's record begins with; `Bench.check` fills it in."""

    fingerprint: str = ""  # of weights, data and settings
    seconds: float = 0.0


class Segment(Record):
    """The straight line (1 − t) a + t b between two models."""

    a: str
    b: str
    t: list[float]
    loss: list[float]  # at each t
    chord: list[float]  # (1 − t) L(a) + t L(b)
    peak: Estimate  # largest L − chord strictly between the ends; negative where the loss sags below the chord
    at: float  # t of the peak

    @property
    def barrier(self) -> float:
        """max_t L(θ_t) − ((1 − t) L_a + t L_b) over the whole segment; the ends make it zero at least."""
        return max(0.0, self.peak.value)


def with_interval(item: Estimate, digits: int = 3) -> str:
    """ "0.351 [0.320, 0.384]"."""
    return f"{decimal(item.value, digits)} [{decimal(item.low, digits)}, {decimal(item.high, digits)}]"


def than(item: Estimate, above: str, below: str) -> str:
    """How a difference reads: "better than", "worse than", or "not told apart from" where its interval holds 0."""
    if item.low > 0:
        return f"{above} than"
    return f"{below} than" if item.high < 0 else "not told apart from"
