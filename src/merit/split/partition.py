"""The partition: which datasets train together. A person can read it, and write one for the `manual` splitter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field, model_validator

from merit.base.record import Record

FRAGILE = 2.0  # standard errors


class Cut(Record):
    """One cut of one group along one axis, as the recursive median made it."""

    axis: int  # 0-based
    group: list[str]  # the datasets that were cut, in order of their score
    threshold: float  # halfway between the last score below and the first above
    tokens_low: int
    tokens_high: int
    margins: dict[str, float] = Field(
        default_factory=dict
    )  # dataset → how many standard errors its score is away from the threshold
    note: str | None = None  # e.g. "`flan` holds 71% of this group's tokens: the cut cannot balance it"


class Group(Record):
    """One branch's datasets."""

    datasets: list[str]
    tokens: int  # planned supervised tokens an epoch, weights applied


class Partition(Record):
    """`partition.json`. `scores` maps a dataset to its coordinates on the axes (empty where the splitter has none)."""

    splitter: str
    groups: list[Group]
    scores: dict[str, list[float]]
    cuts: list[Cut]
    seed: int | None = None

    @model_validator(mode="after")
    def _no_empty_group(self) -> Partition:
        if not self.groups or any(not group.datasets for group in self.groups):
            raise ValueError("a group has no dataset")
        return self

    def indices(self, names: Sequence[str]) -> list[list[int]]:
        """The groups as positions in `names`."""
        position = {name: i for i, name in enumerate(names)}
        return [[position[name] for name in group.datasets] for group in self.groups]

    @property
    def fragile(self) -> list[str]:
        """Datasets that the noise of their gradient could well have put on the other side of a cut, by name."""
        return sorted({name for cut in self.cuts for name, z in cut.margins.items() if abs(z) < FRAGILE})

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Dataset → index of its (first) group."""
        return {name: k for k in reversed(range(len(self.groups))) for name in self.groups[k].datasets}
