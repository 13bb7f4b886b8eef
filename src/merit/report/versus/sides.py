"""The runs of a comparison, each with a name that no other has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.errors import InputError, printable
from merit.report.evidence import Evidence, read_evidence
from merit.run.guard import refuse_links
from merit.run.layout import RunDir


@dataclass(frozen=True)
class Side:
    """One run."""

    name: str
    evidence: Evidence


def read_sides(roots: Sequence[Path]) -> list[Side]:
    """The runs in the order given; the first is the reference.

    Raises:
        InputError: fewer than two, no run directory, or the same one twice.
    """
    if len(roots) < 2:
        raise InputError("a comparison takes two runs at least", field="RUN")
    places = [root.resolve() for root in roots]
    for root, place in zip(roots, places, strict=True):
        if not RunDir(root).config.is_file():
            raise InputError("no run directory: it has no config.yaml", file=root)
        refuse_links(root)
        if places.count(place) > 1:
            raise InputError("the same run is given twice", file=root)
    return [Side(name, read_evidence(root)) for name, root in zip(_names(places), roots, strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]
