"""What the figures say, in plain words: where the merge is better, where worse, and where nobody can tell.

A difference counts when its 95% interval excludes zero. Nothing here hopes for either outcome.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from merit.base.words import code, decimal, series, signed
from merit.evaluate.scores import Comparison, Table, TableRow
from merit.evaluate.statistics import told_apart
from merit.report.evidence import Evidence

MAIN = "merit"

_FACES = {
    "in_mixture": "in the mixture",
    "exact": "in exact match",
    "unseen": "on unseen datasets",
    "drift": "in drift from θ0",
}


@dataclass(frozen=True)
class Against:
    """The merge against one other model: the comparisons by outcome."""

    other: TableRow
    better: Sequence[Comparison]
    worse: Sequence[Comparison]
    open: Sequence[Comparison]

    @property
    def name(self) -> str:
        """The other model, in words."""
        row = self.other
        if row.kind == "base":
            return "θ0 (untuned)"
        return f"{row.description} ({code(row.label)})" if row.description else code(row.label)

    @property
    def outcome(self) -> str:
        """All differences with their standard errors."""
        parts = [
            f"{word} {series([_figure(item) for item in items])}"
            for word, items in (("better", self.better), ("worse", self.worse), ("not told apart", self.open))
            if items
        ]
        return f"{'; '.join(parts)}."


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a run."""

    headline: str
    merge: TableRow
    against: Sequence[Against]
    remarks: Sequence[str]
    caveats: Sequence[str]
    comparisons: Sequence[Comparison]


def reach_verdict(evidence: Evidence) -> Verdict | None:
    """None where the run has no evaluated merge of the main method, or nothing to compare it with."""
    table = evidence.table
    merge = _main_merge(table) if table else None
    if table is None or merge is None:
        return None
    rows = {row.label: row for row in table.rows}
    comparisons, paired = _comparisons(table, merge)
    against = [
        Against(
            rows[label],
            better=[item for item in mine if told_apart(item.gain, item.standard_error) > 0],
            worse=[item for item in mine if told_apart(item.gain, item.standard_error) < 0],
            open=[item for item in mine if told_apart(item.gain, item.standard_error) == 0],
        )
        for label in dict.fromkeys(item.b for item in comparisons)
        if label in rows
        for mine in [[item for item in comparisons if item.b == label and item.face in _FACES]]
    ]
    if not against:
        return None
    return Verdict(
        headline=_headline(evidence, against) + _better_merge(against),
        merge=merge,
        against=against,
        remarks=[
            *_dominance([item for item in against if item.other.branches != MAIN]),
            *_further([item for item in against if item.other.branches == MAIN]),
            *_gain(evidence, merge),
            *_displacement(evidence, merge),
        ],
        caveats=_caveats(evidence, comparisons, paired),
        comparisons=comparisons,
    )


def _main_merge(table: Table) -> TableRow | None:
    merges = [row for row in table.rows if row.kind == "merge" and row.method == MAIN]
    return next((row for row in merges if row.label == MAIN), merges[0] if merges else None)


def _comparisons(table: Table, merge: TableRow) -> tuple[list[Comparison], bool]:
    """The run's own paired comparisons; without them, differences of means with their errors added up."""
    found = [item for item in table.comparisons if item.a == merge.label]
    if found:
        return found, True
    for other in table.rows:
        if other.kind in ("branch", "round") or other.method == MAIN:
            continue
        for face in _FACES:
            left, right = getattr(merge, face), getattr(other, face)
            errors = getattr(merge, f"{face}_se"), getattr(other, f"{face}_se")
            if left is not None and right is not None and None not in errors:
                error = math.hypot(*errors)
                item = Comparison(
                    a=merge.label, b=other.label, face=face, difference=left - right, standard_error=error
                )
                found.append(item)
    return found, False


def _headline(evidence: Evidence, against: Sequence[Against]) -> str:
    """Against joint training where the run has it, else against θ0."""
    joint = evidence.joint
    rival = next((item for item in against if joint and item.other.label == joint.name), None)
    rival = rival or next((item for item in against if item.other.kind == "base"), against[0])
    name = "joint training" if joint and rival.other.label == joint.name else rival.name
    count = len(evidence.main.branches)
    subject = f"The merge of {count} branches" if count > 1 else "The merge"
    parts = [
        f"{word} {series(_words(items))}"
        for word, items in ((f"better than {name}", rival.better), ("worse", rival.worse))
        if items
    ]
    if not parts:
        return f"{subject} cannot be told apart from {name} on these examples."
    told = f"{subject} is {', and '.join(parts)}"
    told = told if rival.better else told.replace(" is worse", f" is worse than {name}")
    rest = series(_words(rival.open))
    return f"{told}; {rest} the two cannot be told apart." if rest else f"{told}."


def _better_merge(against: Sequence[Against]) -> str:
    """The merge of the same branches to take instead: better on most measures, worse on none."""
    better = [item for item in against if item.other.branches == MAIN and item.worse and not item.better]
    if not better:
        return ""
    best = max(better, key=lambda item: len(item.worse))
    return f" Of the same branches, {code(best.other.label)} is the better merge {series(_words(best.worse))}."


def _words(items: Sequence[Comparison]) -> list[str]:
    return [_FACES[item.face] for item in items]


def _dominance(against: Sequence[Against]) -> list[str]:
    remarks = []
    rivals = [item for item in against if item.other.kind != "base"]
    beaten_by = [item.name for item in rivals if item.worse and not item.better]
    beats = [item.name for item in rivals if item.better and not item.worse]
    if beaten_by:
        remarks.append(
            f"{_capital(series(beaten_by))} {'is' if len(beaten_by) == 1 else 'are'} better on at least one measure "
            "and worse on none: where synchronised training is affordable, nothing here speaks for the merge."
        )
    if beats:
        remarks.append(f"The merge is better on at least one measure, and worse on none, than {series(beats)}.")
    return remarks


def _further(against: Sequence[Against]) -> list[str]:
    """Whether another merge of the same branches is the one to take."""
    better = [item.name for item in against if item.worse and not item.better]
    worse = [item.name for item in against if item.better and not item.worse]
    remarks = []
    if better:
        remarks.append(
            f"Of the merges of these branches, {series(better)} {'is' if len(better) == 1 else 'are'} better than this "
            "one on at least one measure and worse on none."
        )
    if worse:
        remarks.append(
            f"Of the merges of these branches, this one is better on at least one measure, and worse on none, than "
            f"{series(worse)}."
        )
    return remarks


def _gain(evidence: Evidence, merge: TableRow) -> list[str]:
    """Theorem 1's left side, Σ w_k L(θ_k) − L(θ̄), where the branches were measured."""
    table = evidence.table
    branches = [row for row in table.rows if row.kind == "branch" and row.method == MAIN] if table else []
    weights = evidence.main.weights
    if len(branches) < 2 or len(weights) != len(branches) or merge.label != MAIN:
        return []
    mean = sum(weight * row.in_mixture for weight, row in zip(weights, branches, strict=True)) / (sum(weights) or 1)
    gain = mean - merge.in_mixture
    word = "positive, as it must be in a quadratic basin" if gain >= 0 else "negative: the basin is not quadratic here"
    return [
        f"Merging gain: on average the branches have an in-mixture loss of {decimal(mean)}, their merge has "
        f"{decimal(merge.in_mixture)}. The gain of {signed(gain)} is {word} (Theorem 1)."
    ]


def _displacement(evidence: Evidence, merge: TableRow) -> list[str]:
    joint, table = evidence.joint, evidence.table
    row = next((row for row in table.rows if joint and row.label == joint.name), None) if table else None
    if row is None or not row.displacement or not merge.displacement:
        return []
    near, far = sorted((merge.displacement, row.displacement))
    way = f"{far / near:.1f}× {'closer to' if near == merge.displacement else 'further from'}"
    return [
        f"The merge lies {way} θ0 than joint training (‖θ − θ0‖ = {merge.displacement:.2f} against "
        f"{row.displacement:.2f}; the paper reports 2.4–2.9× closer)."
    ]


def _caveats(evidence: Evidence, comparisons: Sequence[Comparison], paired: bool) -> list[str]:
    notes = [
        "One run has one seed. The standard errors cover the choice of held-out examples, not of seeds: a second run "
        "can differ by more. `merit study` measures that."
    ]
    if len(comparisons) > 4:
        notes.append(
            f"{len(comparisons)} comparisons are made; by chance alone about one in twenty would be told apart."
        )
    if not paired:
        notes.append("The differences are between means, not example by example, so their errors are too wide.")
    if evidence.joint is None:
        notes.append(
            "There is no joint training in this run, so nothing here says what splitting gained; "
            "add `baselines: {joint: single}`."
        )
    return [*notes, *(evidence.table.notes if evidence.table else [])]


def _figure(item: Comparison) -> str:
    return (
        f"{_FACES[item.face]} ({signed(item.difference)}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{item.standard_error:.3f})"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("θ") else text
