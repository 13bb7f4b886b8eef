"""A surface: one thing that merit reads, the hostile forms of it, and the function of the product that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis import strategies as st
from verdict import KINDS, Room, Verdict

Files = dict[str, bytes]  # path inside the case's folder → content
_SETTINGS = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@dataclass(frozen=True)
class Surface:
    """One thing that merit reads.

    Attributes:
        cases: what lies in the case's folder. `bytes` stand for one file called `file`.
        act: what a command does with it; returns an exit code or None, and raises `Escape` when it was wrong to accept.
        count: cases in a full campaign.
        file: the name of the one file.
        beside: files that lie there, too, whole.
        lay: writes a case in another way.
    """

    name: str
    cases: st.SearchStrategy[Any]
    act: Callable[[Path], Any]
    count: int
    file: str = "file"
    beside: Files = field(default_factory=dict)
    lay: Callable[[Path, Any], None] | None = None

    def judge(self, room: Room, case: Any) -> Verdict:
        return room.judge(lambda folder: self.write(folder, case), self.act)

    def write(self, folder: Path, case: Any) -> None:
        """Lays the case out in `folder`."""
        if self.lay is not None:
            self.lay(folder, case)
            return
        files = {self.file: case} if isinstance(case, bytes) else case
        for name, content in {**self.beside, **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(b"@SECRET@", str(folder.parent / "secret").encode()))


@dataclass
class Tally:
    """What came of a surface's cases."""

    name: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    peak_bytes: int = 0
    slowest_seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)  # why → the first case

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    @property
    def bad(self) -> int:
        return self.counts["escaped"] + self.counts["traceback"]

    def add(self, verdict: Verdict, case: Any) -> None:
        self.counts[verdict.kind] += 1
        self.peak_bytes = max(self.peak_bytes, verdict.peak_bytes)
        self.slowest_seconds = max(self.slowest_seconds, verdict.seconds)
        if verdict.bad:
            self.found.setdefault(f"{verdict.kind}: {verdict.why}", case)


def attack(surface: Surface, room: Room, count: int, number: int = 0) -> Tally:
    """Tries `count` cases, the same ones for the same `number`."""
    tally = Tally(surface.name)
    first = True

    @seed(number)
    @settings(max_examples=max(1, count), phases=[Phase.generate], **_SETTINGS)
    @given(surface.cases)
    def each(case: Any) -> None:
        nonlocal first
        if first:  # what the product imports on its way is nothing that the case has done
            first = False
            room.judge(lambda folder: surface.write(folder, case), surface.act, watched=False)
        if tally.cases < count:
            tally.add(surface.judge(room, case), case)

    each()
    return tally


def smallest(surface: Surface, room: Room, why: str) -> Any:
    """A smallest case that ends in the same way."""

    def same(case: Any) -> bool:
        verdict = surface.judge(room, case)
        return f"{verdict.kind}: {verdict.why}" == why

    return find(surface.cases, same, settings=settings(max_examples=2_000, **_SETTINGS))
