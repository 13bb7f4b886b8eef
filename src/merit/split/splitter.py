"""What a splitter is: one object in one file, which everything else asks instead of knowing its name.

`merit_ext/splitters/halves.py`, anywhere on the Python path, is a whole one:

    \"\"\"`halves`: the first half of the datasets, and the rest.\"\"\"

    from merit.split.splitter import Splitter

    def partition(request):
        names = list(request.tokens)
        return request.partition([names[: len(names) // 2], names[len(names) // 2 :]])

    SPLITTER = Splitter(label="halves", how="in the middle of the list", partition=partition)

The configuration asks a splitter before it says that a file is right, so a splitter's file imports nothing heavy
(numpy, scikit-learn, torch) at its top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from merit.base import extensions
from merit.base.errors import InputError, StageError
from merit.config.sections import Balance, SplitterName
from merit.split.partition import Group, Partition

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from merit.conflict.axes import AxesResult


@dataclass(frozen=True)
class SplitRequest:
    """What a splitter is given.

    Args:
        tokens: dataset → planned supervised tokens, in the mixture's order.
        r: 2^r groups are wanted.
        seed: of whatever is random.
        examples: dataset → planned examples.
        balance: which of the two the groups should have equally many of.
        axes: what the conflict stage found, in the mixture's order, where it has run.
        similarity: (T, T) float64, the cosines of the same.
        file: the user's own file (`split.file`).
    """

    tokens: Mapping[str, int]
    r: int
    seed: int
    examples: Mapping[str, int] = field(default_factory=dict)
    balance: Balance = "tokens"
    axes: AxesResult | None = None
    similarity: NDArray[np.float64] | None = None
    file: Path | None = None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Dataset → what it weighs in a cut."""
        return self.examples if self.balance == "samples" else self.tokens

    def measured_axes(self) -> AxesResult:
        """The conflict axes, r of them at least.

        Raises:
            StageError: the conflict stage belongs to another mixture, has not run, or kept fewer than r axes.
        """
        self.measured_similarity()
        if self.axes is None or self.r > min(map(len, self.axes.scores)):
            raise StageError(f"the conflict stage kept fewer than {self.r} axes; run `merit conflict` again")
        return self.axes

    def measured_similarity(self) -> NDArray[np.float64]:
        """(T, T) float64 cosines, in the order of `tokens`.

        Raises:
            StageError: the conflict stage belongs to another mixture, or has not run.
        """
        if self.axes is None or self.similarity is None or self.axes.names != list(self.tokens):
            raise StageError("this splitter needs this mixture's conflict stage; run `merit conflict` first")
        return self.similarity

    def partition(self, groups: Sequence[Sequence[str]]) -> Partition:
        """These groups, with their tokens. `make_partition` writes the splitter's name into it."""
        return Partition(splitter="", groups=[Group.of(group, self.tokens) for group in groups], scores={}, cuts=[])


@dataclass(frozen=True)
class Splitter:
    """A splitter: what it does, and what others need to know of it. Its name is its file's.

    Args:
        label: the method in tables, before the number of groups: "MERIT", "random split".
        how: completes "The mixture was split …" in the report.
        partition: makes the groups. Raises InputError where the mixture or the file does not fit.
        role: a `method` is what a study tests; a `control` is what it is tested against; `chance` is the control
            that draws its groups.
        on_axes: its cuts are along the conflict axes, so that a dataset that is added later finds its side of them.
        needs_file: `split.file` says what the groups are, and how many.
        whole_mixture: every group is the whole mixture; its branches differ by their training seeds.
        one_group: one group, whatever r is: joint training.
    """

    label: str
    how: str
    partition: Callable[[SplitRequest], Partition]
    role: Literal["method", "control", "chance"] = "method"
    on_axes: bool = False
    needs_file: bool = False
    whole_mixture: bool = False
    one_group: bool = False

    def least_datasets(self, axes: int | Literal["auto"]) -> int:
        """How many datasets the mixture must have."""
        if self.needs_file or self.whole_mixture or self.one_group:
            return 1
        return 2 if axes == "auto" else 2**axes

    def describe(self, groups: int | Literal["auto"]) -> str:
        """The method in a few words, for tables."""
        if self.one_group:
            return self.label
        if groups == 1:
            return f"{self.label}: not worth a split"
        return f"{self.label} of {groups}" if self.whole_mixture else f"{self.label}, {groups} groups"


def find_splitter(name: str) -> Splitter:
    """The splitter of this name.

    Raises:
        InputError: there is none.
    """
    found: Splitter = extensions.load("splitters", name)
    return found


def known_splitter(name: str) -> Splitter:
    """As `find_splitter`; for a run whose splitter this machine does not have, what its name says."""
    try:
        return find_splitter(name)
    except InputError:
        return Splitter(label=f"{name} split", how=f"by the splitter {name}", partition=_absent)


def _absent(request: SplitRequest) -> Partition:
    raise StageError("this machine does not have the splitter")


def make_partition(splitter: SplitterName, request: SplitRequest) -> Partition:
    """The mixture's datasets in groups.

    Raises:
        InputError: no such splitter; fewer datasets than groups; a wrong or missing file.
        StageError: the splitter needs the conflict stage, which belongs to another mixture or has not run.
    """
    made = find_splitter(splitter).partition(request)
    # A splitter may have counted examples; what a branch trains on, and weighs in the merge, is its tokens.
    groups = request.partition([group.datasets for group in made.groups]).groups
    return made.model_copy(update={"splitter": splitter, "groups": groups})
