"""What a study found, as one JSON file: tables, figures and advice are drawn from it."""

from __future__ import annotations

from pydantic import Field

from merit.base.record import Record


class Interval(Record):
    """A mean over seeds and its 95% interval."""

    value: float
    low: float
    high: float


class Row(Record):
    """A contender at one budget. Losses are on test examples; lower is better."""

    budget: str
    label: str  # merit-2d; merit-2d* is at the scale that validation chose; best:merit the best of a pool
    method: str | None  # None for θ0 and for a pool's best
    words: str
    passes: float  # training tokens, as a multiple of one joint run; 0 for θ0
    supervised_tokens: int  # mean over seeds
    faces: dict[str, Interval]
    average: Interval
    exact: float | None  # share of in-mixture examples that greedy decoding answers word for word
    drift: float | None
    distance: float  # ‖θ − θ0‖, mean over seeds
    seconds: float  # of training, mean over seeds
    chosen: list[str]  # what validation chose, seed by seed; empty where there was nothing to choose


class Comparison(Record):
    """Loss of `a` minus loss of `b`. Negative: `a` is better."""

    budget: str
    a: str
    b: str
    face: str  # a face, or `average`
    difference: float
    low: float
    high: float
    p: float
    holm: float
    effect: float | None  # Cohen's d over seeds
    share: float | None  # of what joint training gains on this face over θ0
    wins: int  # datasets of the face on which a is better
    datasets: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`: a claim only where the interval excludes zero."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "undecided"


class RayPoint(Record):
    """One point of a method's ray, mean over seeds."""

    scale: float
    faces: dict[str, float]  # test losses
    average: float
    validation: dict[str, float]  # what advice chooses by


class Ray(Record):
    """θ0 + β(θ − θ0) of one method at one budget, in order of β."""

    budget: str
    method: str
    points: list[RayPoint]


class Answer(Record):
    """How well one similarity foretells harm: Spearman's correlation of similarity and benefit over pairs."""

    variant: str
    rank: Interval  # of similarity with the fall of i's loss after tuning on j
    centred: Interval  # the same without what is common to all pairs of i, and to all of j
    gain: Interval | None  # `centred` minus that of `raw`, paired; None for `raw` itself


class Results(Record):
    """`results/results.json`."""

    name: str
    complete: bool
    seeds: list[int]
    budgets: list[str]
    budget_seeds: dict[str, list[int]] = Field(default_factory=dict)  # those that a budget's tables are of; unset: all
    parameters: int
    datasets: dict[str, int]  # face → datasets
    examples: dict[str, int]  # face → test examples a seed
    rows: list[Row]
    comparisons: list[Comparison]
    rays: list[Ray]
    answers: list[Answer]
    recommended_axes: list[int]  # what `axes: auto` took, seed by seed
    shared_examples: bool
    skipped: dict[str, str]
    notes: list[str]
    machine: dict[str, str]

    def seeds_of(self, budget: str) -> list[int]:
        """The seeds that a budget's tables are of."""
        return self.budget_seeds.get(budget, self.seeds)
