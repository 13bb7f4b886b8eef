"""What each run of a comparison reached, and the differences that the same held-out examples can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merit.base.words import code, plural, signed
from merit.evaluate.scores import DatasetScore, ModelScores, TableRow
from merit.evaluate.statistics import exact_difference, half_width, mean_difference, told_apart
from merit.report.drawing import LOSS_FACES, DataTable, Figure, Mark, forest_layout, forest_traces
from merit.report.evidence import Evidence
from merit.report.page import Section
from merit.report.table import shown_columns


@dataclass(frozen=True)
class Side:
    """One run."""

    name: str
    evidence: Evidence


FACES = {
    "in_mixture": "loss in the mixture",
    "exact": "exact match",
    "unseen": "loss on unseen datasets",
    "drift": "drift from θ0",
}


@dataclass(frozen=True)
class Difference:
    """One model of a run minus the same model of the reference, example by example."""

    run: str
    model: str
    face: str
    value: float
    standard_error: float
    examples: int

    @property
    def low(self) -> float:
        return self.value - half_width(self.standard_error)

    @property
    def high(self) -> float:
        return self.value + half_width(self.standard_error)

    @property
    def verdict(self) -> str:
        """Of this run against the reference."""
        sign = told_apart(self.value, self.standard_error)
        return "not told apart" if sign == 0 else "better" if (sign > 0) == (self.face == "exact") else "worse"


def compare_results(sides: Sequence[Side]) -> tuple[list[Difference], list[str]]:
    """Every model that a run and the reference both evaluated, and what kept examples from being paired."""
    reference, *others = sides
    first = {item.label: item for item in reference.evidence.scores if item.kind != "branch"}
    found: list[Difference] = []
    notes: list[str] = []
    for side in others:
        shared = _shared(reference.evidence, side.evidence)
        known = len(_fingerprints(reference.evidence).keys() | _fingerprints(side.evidence).keys())
        order = [item.label for item in (side.evidence.table.rows if side.evidence.table else ())]
        second = {item.label: item for item in side.evidence.scores}
        for label in [name for name in order if name in first and name in second]:
            found += _differences(side, first[label], second[label], shared, _same_drift(reference, side))
        if len(shared) < known and any(item.run == side.name for item in found):
            notes.append(
                f"{len(shared)} of {plural(known, 'dataset')} have the same held-out examples in "
                f"{code(reference.name)} and {code(side.name)}: the differences are over those alone."
            )
    return found, notes


def results_section(sides: Sequence[Side], differences: Sequence[Difference], notes: Sequence[str]) -> Section:
    """The chapter."""
    tables = []
    if (table := _figures(sides)) is not None:
        tables.append(("Every model of every run", table))
    if differences:
        tables.append(
            (f"Each run minus {sides[0].name}, on the same held-out examples", _differences_table(differences))
        )
    losses = [item for item in differences if item.face != "exact"]
    sentences = [_sentence(sides[0].name, item) for item in differences if item.model == "merit"]
    if not differences:
        sentences.append("No model was evaluated on the same held-out examples in two runs, so nothing can be paired.")
    figures = [differences_figure(losses, sides[0].name)] if losses else []
    told = [*notes, *_caveats(differences)]
    context = {"sentences": sentences, "tables": tables, "figures": figures, "notes": told}
    return Section("results", "What each reached", "versus", context)


def _sentence(reference: str, item: Difference) -> str:
    return (
        f"The merge of {code(item.run)} is {item.verdict} {'from' if item.verdict.startswith('not') else 'than'} "
        f"that of {code(reference)} in {FACES[item.face]}: "
        f"{signed(item.value)} [{signed(item.low)}, {signed(item.high)}]."
    )


def _caveats(differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    return [
        "Brackets are 95% intervals over held-out examples, paired. They do not cover seeds: two runs of the same "
        "configuration with other seeds differ too. `merit study` measures that."
    ]


def _figures(sides: Sequence[Side]) -> DataTable | None:
    rows: list[tuple[str, TableRow]] = [
        (side.name, row)
        for side in sides
        for row in (side.evidence.table.rows if side.evidence.table else ())
        if row.kind != "branch"
    ]
    columns = shown_columns([row for _, row in rows])
    labels = list(dict.fromkeys(row.label for _, row in rows))
    ordered = sorted(rows, key=lambda item: labels.index(item[1].label))
    cells = [[row.label, name, *(column.cell(row) for column in columns)] for name, row in ordered]
    return DataTable(["model", "run", *(column.title for column in columns)], cells) if cells else None


def _differences_table(differences: Sequence[Difference]) -> DataTable:
    return DataTable(
        ["model", "run", "measure", "difference", "95% interval", "examples", "this run is"],
        [
            [
                item.model,
                item.run,
                FACES[item.face],
                signed(item.value),
                f"{signed(item.low)} to {signed(item.high)}",
                f"{item.examples:,}",
                item.verdict,
            ]
            for item in differences
        ],
    )


def _fingerprints(evidence: Evidence) -> Mapping[str, str]:
    """Of the encoded rows, held-out marks included: the same fingerprint is the same held-out examples."""
    mixture = evidence.mixture
    return {item.name: item.fingerprint for item in [*mixture.datasets, *mixture.unseen]} if mixture else {}


def _shared(a: Evidence, b: Evidence) -> set[str]:
    first, second = _fingerprints(a), _fingerprints(b)
    return {name for name, mark in first.items() if second.get(name) == mark}


def _same_drift(a: Side, b: Side) -> bool:
    first, second = a.evidence.drift, b.evidence.drift
    return first is not None and second is not None and first.labels == second.labels


def _differences(
    side: Side, first: ModelScores, second: ModelScores, shared: set[str], same_drift: bool
) -> list[Difference]:
    found = []
    for face in FACES:
        if face == "drift":
            scores = ([first.drift], [second.drift]) if same_drift and first.drift and second.drift else ([], [])
        else:
            field = "in_mixture" if face == "exact" else face
            scores = (
                [score for score in getattr(first, field) if score.name in shared],
                [score for score in getattr(second, field) if score.name in shared],
            )
        a, b = _paired(*scores)
        if not a:
            continue
        measure = exact_difference if face == "exact" else mean_difference
        value, error = measure(b, a)
        if value is None or error is None:
            continue
        count = sum(len((s.exact or []) if face == "exact" else s.losses) for s in a)
        found.append(Difference(side.name, second.label, face, value, error, count))
    return found


def _paired(
    first: Sequence[DatasetScore], second: Sequence[DatasetScore]
) -> tuple[list[DatasetScore], list[DatasetScore]]:
    """The same datasets in the same order, cut to the examples that both have: a run may have measured more of them."""
    others = {score.name: score for score in second}
    pairs = []
    for a in first:
        b = others.get(a.name)
        if b is None:
            continue
        count = min(len(a.losses), len(b.losses))
        if any(a.tokens[:count]) and a.tokens[:count] == b.tokens[:count]:
            pairs.append((_cut(a, b, count), _cut(b, a, count)))
    return [a for a, _ in pairs], [b for _, b in pairs]


def _cut(score: DatasetScore, other: DatasetScore, count: int) -> DatasetScore:
    answered = min(len(score.exact or []), len(other.exact or []))
    return DatasetScore(
        name=score.name,
        losses=score.losses[:count],
        tokens=score.tokens[:count],
        exact=score.exact[:answered] if score.exact and answered else None,
    )


def differences_figure(differences: Sequence[Difference], reference: str) -> Figure:
    """Differences in loss with 95% intervals; left of zero the run is better than the reference."""
    marks = [
        Mark(f"{item.run}: {item.model}", item.face, item.value, item.high - item.value, item.verdict)
        for item in differences
    ]
    count = len({mark.row for mark in marks})
    return Figure(
        id="differences",
        title=f"Each run minus {reference}",
        alt=f"Differences in loss of {count} models against the same models of the reference run, with 95% "
        "intervals. Left of zero the run is better.",
        traces=forest_traces(marks),
        layout=forest_layout(marks, "this run"),
        table=DataTable(
            ["run", "model", "measure", "difference", "95% interval"],
            [
                [
                    item.run,
                    item.model,
                    LOSS_FACES[item.face],
                    signed(item.value),
                    f"{signed(item.low)} to {signed(item.high)}",
                ]
                for item in differences
            ],
        ),
        height=120 + 56 * count,
    )
