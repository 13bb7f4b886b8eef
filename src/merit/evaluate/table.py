"""The results table: a row for each model, a comparison for each pair that matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merit.base.words import plural
from merit.evaluate.scores import Comparison, DatasetScore, ModelScores, Table, TableRow
from merit.evaluate.statistics import exact_difference, mean_difference, mean_exact, mean_loss
from merit.train.spec import BranchResult

_FACES = ("in_mixture", "exact", "unseen", "drift")


@dataclass(frozen=True)
class MethodFacts:
    """What the table shows of a method besides its scores."""

    description: str
    branches: Mapping[int, BranchResult]  # those that were merged
    displacement: Mapping[str, float]  # scale, as `%g` → ‖θ − θ0‖
    branch_displacement: Sequence[float]  # in the order of `branches`
    left_out: Sequence[int] = ()  # branches that were not done
    source: str = ""  # the method that trained the branches
    bytes_moved: int | None = None  # as in `TableRow`
    machine_seconds: float | None = None

    @property
    def supervised_tokens(self) -> int:
        return sum(item.supervised_tokens for item in self.branches.values())


def make_table(scores: Sequence[ModelScores], facts: Mapping[str, MethodFacts]) -> Table:
    """Rows in the order of `scores`; every merge of the main method is compared with every other method's.

    So are further merges of its branches, but not among themselves.
    """
    rows = [_row(item, facts.get(item.label if item.kind == "round" else item.method)) for item in scores]
    mine = [item for item in scores if item.kind == "merge" and item.method == "merit"]
    others = [item for item in scores if item.kind not in ("branch", "round") and item.method != "merit"]
    further = [item for item in others if item.method in facts and facts[item.method].source == "merit"]
    pairs = [(a, b) for a in mine for b in others] + [(a, b) for a in further for b in others if b not in further]
    comparisons = [comparison for a, b in pairs for face in _FACES if (comparison := _compare(a, b, face)) is not None]
    return Table(rows=rows, comparisons=comparisons, notes=_notes(scores, facts))


def _row(scores: ModelScores, facts: MethodFacts | None) -> TableRow:
    in_mixture, in_mixture_se = mean_loss(scores.in_mixture)
    exact, exact_se = mean_exact(scores.in_mixture)
    unseen, unseen_se = mean_loss(scores.unseen) if scores.unseen else (None, None)
    drift, drift_se = mean_loss([scores.drift]) if scores.drift else (None, None)
    description, displacement, branches = _origin(scores, facts)
    return TableRow(
        label=scores.label,
        method=scores.method,
        kind=scores.kind,
        description=description,
        in_mixture=in_mixture,
        in_mixture_se=in_mixture_se,
        exact=exact,
        exact_se=exact_se,
        unseen=unseen,
        unseen_se=unseen_se,
        drift=drift,
        drift_se=drift_se,
        displacement=displacement,
        supervised_tokens=sum(item.supervised_tokens for item in branches),
        train_seconds=sum(item.seconds for item in branches),
        branches=facts.source if facts else None,
        bytes_moved=facts.bytes_moved if facts and scores.kind != "branch" else None,
        machine_seconds=facts.machine_seconds if facts and scores.kind != "branch" else None,
    )


def _origin(scores: ModelScores, facts: MethodFacts | None) -> tuple[str, float | None, Sequence[BranchResult]]:
    """A model's description, its ‖θ − θ0‖, and the branches that it was made from."""
    if facts is None:
        return "θ0, before tuning", None, []
    planned = len(facts.branches) + len(facts.left_out)
    if scores.kind == "branch":
        k = int(scores.label.rsplit("-", 1)[1])
        displacement = facts.branch_displacement[list(facts.branches).index(k)]
        return f"branch {k} of {planned}", displacement, [facts.branches[k]]
    description = facts.description
    if facts.left_out:
        description += f", only {len(facts.branches)} of {planned} branches"
    if scores.scale != 1:
        description += f", pulled to β = {scores.scale:g}"
    return description, facts.displacement[f"{scores.scale:g}"], list(facts.branches.values())


def _face(scores: ModelScores, face: str) -> Sequence[DatasetScore]:
    if face == "drift":
        return [scores.drift] if scores.drift else []
    found: Sequence[DatasetScore] = getattr(scores, face)
    return found


def _compare(a: ModelScores, b: ModelScores, face: str) -> Comparison | None:
    if face == "exact":
        difference, error = exact_difference(a.in_mixture, b.in_mixture)
    else:
        left, right = _face(a, face), _face(b, face)
        difference, error = mean_difference(left, right) if left else (None, None)
    if difference is None or error is None:  # one example a dataset: nothing can be said
        return None
    return Comparison(a=a.label, b=b.label, face=face, difference=difference, standard_error=error)


def _notes(scores: Sequence[ModelScores], facts: Mapping[str, MethodFacts]) -> list[str]:
    notes = []
    for name, fact in facts.items():
        if fact.left_out:
            gone = ", ".join(map(str, fact.left_out))
            notes.append(f"Partial: `{name}` is merged without branch {gone}, which was not done in time.")
    ends = {item.method for item in scores}  # a round before the last has seen less, as it should
    counts = {name: fact.supervised_tokens for name, fact in facts.items() if name in ends}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        notes.append(f"The methods did not see the same number of supervised tokens: {told}.")
    if any(fact.bytes_moved for fact in facts.values()):
        notes.append(
            "Bytes moved and wall clock: of K machines, one a branch. Joint training runs on as many, which exchange "
            "their gradients in every step; its time is one machine's, divided by K."
        )
    held_out = min((len(item.losses) for score in scores for item in score.in_mixture), default=0)
    if held_out < 16:
        examples = plural(held_out, "held-out example")
        notes.append(f"Only {examples} in the smallest dataset: the standard errors are rough.")
    return notes
