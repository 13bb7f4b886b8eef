"""The scores of one evaluated model, and the table of all models."""

from __future__ import annotations

from merit.base.record import Record, Sealed


class DatasetScore(Record):
    """One model on one dataset."""

    name: str
    losses: list[float]  # mean supervised-token loss of each held-out example, in the dataset's fixed order
    tokens: list[int]  # supervised tokens of each
    exact: list[float] | None  # score in 0..1 of each greedily answered example, where the source can be scored

    @property
    def loss(self) -> float:
        """Token-weighted mean loss, in nats a supervised token."""
        return sum(x * n for x, n in zip(self.losses, self.tokens, strict=True)) / sum(self.tokens)


class ModelScores(Sealed):
    """`evaluation/<label>.json`."""

    label: str  # base, merit, joint, joint@0.5, merit/branch-02 …
    method: str  # base, merit, or a baseline's name
    kind: str  # base, branch, merge
    scale: float
    fingerprint: str  # of the weights, the data and the settings
    in_mixture: list[DatasetScore]
    unseen: list[DatasetScore]
    drift: DatasetScore | None
    seconds: float


class TableRow(Record):
    """A line of the results table. Losses are unweighted means over datasets, ± one standard error over examples."""

    label: str
    method: str
    kind: str
    description: str  # "joint training", "MERIT, 4 groups" …
    in_mixture: float
    in_mixture_se: float | None  # None where no dataset has two examples
    exact: float | None
    exact_se: float | None = None  # None too where all answers score alike; tables of older runs have none
    unseen: float | None
    unseen_se: float | None
    drift: float | None
    drift_se: float | None
    displacement: float | None  # ‖θ − θ0‖, None for θ0 itself
    supervised_tokens: int
    train_seconds: float
    branches: str | None = None  # the method whose branches it merges; None for θ0, and in tables of older runs
    # With a machine a branch; joint training is counted on as many as the main method has branches. None: not known.
    bytes_moved: int | None = None  # between the machines while they train
    machine_seconds: float | None = None  # until the last machine has trained


class Comparison(Record):
    """Model `a` minus model `b` on one face, paired example by example.

    Losses (negative: `a` is better), but for the face `exact`: shares of right answers (positive: `a` is better).
    """

    a: str
    b: str
    face: str  # in_mixture, exact, unseen or drift
    difference: float
    standard_error: float

    @property
    def gain(self) -> float:
        """How much better `a` is: positive whichever way the face counts."""
        return self.difference if self.face == "exact" else -self.difference


class Table(Record):
    """`evaluation/table.json`."""

    rows: list[TableRow]
    comparisons: list[Comparison]
    notes: list[str]
