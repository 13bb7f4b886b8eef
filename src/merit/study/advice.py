"""Recommends one of the models that are there, for the trade-off between the faces that the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merit.base.errors import InputError
from merit.evaluate.scores import Table
from merit.study.measure import FACES
from merit.study.results import Results


@dataclass(frozen=True)
class Candidate:
    """A trained model, or one that scaling a trained model would make."""

    label: str
    words: str
    chosen_by: Mapping[str, float]  # face → the loss that it is chosen by
    losses: Mapping[str, float]  # face → the loss that is reported
    branches: str | None = None  # the method whose branches it merges, where that is known


@dataclass(frozen=True)
class Advice:
    """The best candidate by the weighted mean loss, the next of another method, and the best on each face alone.

    Attributes:
        merges: method → the best merge of its branches, where there are several.
    """

    best: Candidate
    next: Candidate | None
    weights: Mapping[str, float]
    specialists: Mapping[str, Candidate]
    note: str
    merges: Mapping[str, Candidate] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The advice as sentences."""
        faces = ", ".join(f"{face.replace('_', '-')} {value:.3f}" for face, value in self.best.losses.items())
        lines = [f"use {self.best.label} ({self.best.words}): {faces}"]
        for face, other in self.specialists.items():
            lost = self.best.losses[face] - other.losses[face]
            if other.label != self.best.label and lost > 0:
                name = face.replace("_", "-")
                lines.append(f"  gives up {lost:.3f} nats of {name} loss against {other.label} ({other.words})")
        if self.next is not None:
            gap = _mean(self.next.losses, self.weights) - _mean(self.best.losses, self.weights)
            lines.append(f"  next: {self.next.label} ({self.next.words}), {gap:+.3f} on your trade-off")
        for name, other in self.merges.items():
            lines.append(f"  of the merges of {name}'s branches: {other.label} ({other.words})")
        return [*lines, f"  {self.note}"]


def parse_trade_off(text: str | None) -> dict[str, float]:
    """`in_mixture=2,unseen=1` → weights; an unnamed face has weight 0; without text all weights are 1.

    Raises:
        InputError: an unknown face, a negative or missing number, all zero.
    """
    if not text:
        return dict.fromkeys(FACES, 1.0)
    weights: dict[str, float] = dict.fromkeys(FACES, 0.0)
    for part in text.split(","):
        face, _, number = part.partition("=")
        face = face.strip().replace("-", "_")
        if face not in weights:
            raise InputError(f"no face {face!r}; there are {', '.join(FACES)}", field="--prefer")
        try:
            weights[face] = float(number)
        except ValueError:
            raise InputError(f"{number!r} is not a number", field=f"--prefer {face}") from None
        if not math.isfinite(weights[face]) or weights[face] < 0:
            raise InputError(f"{number} is no weight: give a number of 0 or more", field=f"--prefer {face}")
    if not any(weights.values()):
        raise InputError("all weights are zero", field="--prefer")
    return weights


def advise_study(results: Results, weights: Mapping[str, float], budget: str | None = None) -> Advice:
    """Chooses among all points of all rays at `budget` (default: the last) whose training took one pass at most.

    Raises:
        InputError: no such budget.
    """
    budget = budget or results.budgets[-1]
    if budget not in results.budgets:
        raise InputError(f"no budget {budget!r}; there are {', '.join(results.budgets)}", field="--budget")
    words = {row.label: row for row in results.rows if row.budget == budget}
    found = [
        Candidate(
            ray.method if point.scale == 1 else f"{ray.method} × {point.scale:g}",
            words[ray.method].words,
            point.validation,
            point.faces,
            words[ray.method].branches,
        )
        for ray in results.rays
        if ray.budget == budget and words[ray.method].passes <= 1
        for point in ray.points
    ]
    seeds = len(results.seeds_of(budget))
    note = f"chosen on validation examples, reported on test; budget {budget}, {seeds} seed{'s' * (seeds != 1)}"
    return choose(found, weights, note)


def advise_run(table: Table, weights: Mapping[str, float]) -> Advice:
    """Chooses among the merges of one run. Retention is drift.

    Raises:
        InputError: no measured model to choose from.
    """
    found = []
    for row in table.rows:
        if row.kind == "branch":
            continue
        losses = {"in_mixture": row.in_mixture, "unseen": row.unseen, "retention": row.drift}
        known = {face: value for face, value in losses.items() if value is not None}
        found.append(Candidate(row.label, row.description, known, known, row.branches))
    note = (
        "one run: the same held-out examples choose and report, so these losses are a little too low; "
        "the report shows their errors"
    )
    return choose(found, weights, note)


def choose(found: Sequence[Candidate], weights: Mapping[str, float], note: str) -> Advice:
    """Chooses the least weighted mean loss.

    Raises:
        InputError: no candidate, or no face with a weight was measured.
    """
    if not found:
        raise InputError("no model has been measured yet")
    used = {face: weights[face] for face in found[0].chosen_by if weights.get(face)}
    if not used:
        raise InputError("none of these faces was measured", field="--prefer")
    order = sorted(found, key=lambda item: _mean(item.chosen_by, used))
    best = order[0]
    other = next((item for item in order if _family(item) != _family(best)), None)
    specialists = {face: min(found, key=lambda item: item.chosen_by[face]) for face in found[0].chosen_by}
    return Advice(best, other, used, specialists, note, _best_merges(order))


def _best_merges(order: Sequence[Candidate]) -> dict[str, Candidate]:
    """Method → the first of `order` that merges its branches, where several merges do."""
    merges: dict[str, list[Candidate]] = {}
    for item in order:
        if item.branches is not None:
            merges.setdefault(item.branches, []).append(item)
    return {name: items[0] for name, items in merges.items() if len({_family(item) for item in items}) > 1}


def _family(item: Candidate) -> str:
    return item.label.split(" × ")[0].split("@")[0]


def _mean(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    used = {face: weight for face, weight in weights.items() if face in losses}
    return sum(losses[face] * weight for face, weight in used.items()) / sum(used.values())
