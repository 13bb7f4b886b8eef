"""The models that a diagnosis is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merit.base.errors import InputError

BASE, MERGE, JOINT = "base", "merge", "joint"


@dataclass(frozen=True)
class Models:
    """θ0 and the models tuned from it: folders in Hugging Face layout.

    Attributes:
        weights: of the branches in the merge; they sum to 1.
        trajectories: label → folder of the snapshots that its training may have left.
    """

    base: Path
    branches: Sequence[Path]
    weights: Sequence[float]
    merge: Path
    joint: Path | None = None
    trajectories: Mapping[str, Path] = field(default_factory=dict)

    def check(self) -> None:
        """Raises:
        InputError: fewer than two branches, not one weight for each branch, or a missing folder.
        """
        if len(self.branches) < 2:
            raise InputError(f"a diagnosis needs at least two branches; there {_are(len(self.branches))}")
        if len(self.weights) != len(self.branches):
            raise InputError(f"{len(self.branches)} branches, but {len(self.weights)} weights")
        for label, folder in self.folders.items():
            if not folder.is_dir():
                raise InputError(f"no checkpoint of `{label}` here; was it removed?", file=folder)

    @property
    def branch_labels(self) -> list[str]:
        return [f"branch {k}" for k in range(len(self.branches))]

    @property
    def folders(self) -> dict[str, Path]:
        """Label → folder: base, branch 0 …, merge, and joint where there is one."""
        found = {BASE: self.base, **dict(zip(self.branch_labels, self.branches, strict=True)), MERGE: self.merge}
        return found | ({JOINT: self.joint} if self.joint is not None else {})


def _are(count: int) -> str:
    return "is one" if count == 1 else "are none"
