"""The partition: which datasets train together. A person can read it, and write one for the `manual` splitter.

Here is also what keeps a partition while its mixture changes: datasets come and go, the others keep their branches. A
new dataset's coordinate on a saved axis is what a PCA gives a point that it was not fitted on: its centred cosines with
the old datasets, times the axis's directions. For an old dataset that is its own score. The saved cuts then say which
group it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from merit.base.errors import InputError
from merit.base.record import Record
from merit.base.words import plural
from merit.config.sections import Balance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from merit.conflict.axes import AxesResult

FRAGILE = 2.0  # standard errors
_SIDES = ("tokens_low", "tokens_high")


class Cut(Record):
    """One cut of one group along one axis, as the recursive median made it."""

    axis: int  # 0-based
    group: list[str]  # the datasets that were cut, in order of their score
    threshold: float  # halfway between the last score below and the first above
    low: int  # examples or tokens below the threshold
    high: int
    balance: Balance = "tokens"  # which of the two the cut halves
    margins: dict[str, float] = Field(
        default_factory=dict
    )  # dataset → how many standard errors its score is away from the threshold
    note: str | None = None  # e.g. "`flan` holds 71% of this group's tokens: the cut cannot balance it"

    @model_validator(mode="before")
    @classmethod
    def _from_first_version(cls, value: Any) -> Any:
        """merit 0.1.0 balanced tokens only, and called the sides so."""
        if not isinstance(value, dict):
            return value
        return {key.removeprefix("tokens_") if key in _SIDES else key: item for key, item in value.items()}


class Group(Record):
    """One branch's datasets."""

    datasets: list[str]
    tokens: int  # planned supervised tokens an epoch, weights applied

    @classmethod
    def of(cls, datasets: Iterable[str], tokens: Mapping[str, int]) -> Group:
        """These datasets, in this order, with the sum of their tokens."""
        names = list(datasets)
        return cls(datasets=names, tokens=sum(tokens.get(name, 0) for name in names))


class Partition(Record):
    """`partition.json`. `scores` maps a dataset to its coordinates on the axes (empty where the splitter has none)."""

    splitter: str
    groups: list[Group]
    scores: dict[str, list[float]]
    cuts: list[Cut]
    seed: int | None = None

    def in_a_line(self, width: int) -> str:
        """The groups by their datasets, in at most `width` characters: `K = 2 groups: algebra, gcd · code +3`."""
        head = f"K = {plural(len(self.groups), 'group')}: "
        groups = [group.datasets for group in self.groups]
        line = head
        for shown in range(max(map(len, groups)), 0, -1):
            parts = (
                ", ".join(names[:shown]) + (f" +{len(names) - shown}" if names[shown:] else "") for names in groups
            )
            line = head + " · ".join(parts)
            if len(line) <= width:
                return line
        return f"{line[: width - 1]}…"

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
    def mark(self) -> dict[str, Any]:
        """What fingerprints hold of it: what merit 0.1.0 would, so that its branches stay trained."""
        values = self.model_dump(mode="json")
        for cut in values["cuts"]:
            if cut["balance"] == "tokens":
                del cut["balance"]
                cut |= {old: cut.pop(old.removeprefix("tokens_")) for old in _SIDES}
        return values

    @property
    def fragile(self) -> list[str]:
        """Datasets that the noise of their gradient could well have put on the other side of a cut, by name."""
        return sorted({name for cut in self.cuts for name, z in cut.margins.items() if abs(z) < FRAGILE})

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Dataset → index of its (first) group."""
        return {name: k for k in reversed(range(len(self.groups))) for name in self.groups[k].datasets}


def extend_partition(
    kept: Partition,
    axes: AxesResult | None,
    names: list[str],
    similarity: NDArray[np.float64] | None,
    tokens: Mapping[str, int],
) -> Partition:
    """`kept` without the datasets that are gone, and with those that are new.

    Args:
        axes: the axes that `kept` was cut on. Without them a new dataset goes to the group with the fewest tokens.
        names: the mixture's datasets now, in the order of `similarity` (T, T).
        tokens: dataset → planned supervised tokens.

    Raises:
        InputError: a group would be left without a dataset.
    """
    members = [[name for name in group.datasets if name in tokens] for group in kept.groups]
    for k, group in enumerate(members):
        if not group:
            raise InputError(
                f"branch {k} would be left without a dataset; set `split.keep: false` and run again to split anew",
                field="mixture",
            )
    scores = {name: row for name, row in kept.scores.items() if name in tokens}
    for name in sorted(set(names) - {name for group in members for name in group}):
        if axes is not None and similarity is not None and kept.cuts:
            scores[name] = project(axes, names, similarity, name)
            k = _by_cuts(kept, scores[name])
        else:
            k = min(range(len(members)), key=lambda k: (sum(tokens[item] for item in members[k]), k))
        members[k].append(name)
    groups = [Group.of(sorted(group), tokens) for group in members]
    return kept.model_copy(update={"groups": groups, "scores": scores})


def project(axes: AxesResult, names: list[str], similarity: NDArray[np.float64], name: str) -> list[float]:
    """The coordinates of dataset `name` on axes that it was not part of, one a kept axis."""
    import numpy as np

    old = [item for item in axes.names if item in names]
    rows = [axes.names.index(item) for item in old]
    here = [names.index(item) for item in old]
    square = similarity[np.ix_(here, here)]
    cosines = similarity[names.index(name), here]
    if axes.centre != "none":
        cosines = cosines - square.mean(axis=0)
    if axes.centre == "both":
        cosines = cosines - cosines.mean()
    found: list[float] = (cosines @ np.asarray(axes.directions, np.float64)[rows]).tolist()
    return found


def _by_cuts(kept: Partition, scores: list[float]) -> int:
    """The group whose side of every cut the scores are on: group k's binary digits, axis 0 first."""
    k = 0
    for axis in range(len(kept.groups).bit_length() - 1):
        cut = kept.cuts[2**axis - 1 + k]
        k = 2 * k + (scores[axis] > cut.threshold)
    return k
