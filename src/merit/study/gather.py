"""From the summaries of jobs to contenders: what competes at one budget, seed by seed, as validation chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merit.base.errors import StageError
from merit.config.study import MethodConfig
from merit.evaluate.scores import DatasetScore
from merit.split.splitter import known_splitter
from merit.study.scores import DRIFT, FACES, Faces, MethodResult, PointResult, PointScores, Summary
from merit.study.spec import Study

BASE = "base"
CHOSEN = "*"
BEST = "best:"


@dataclass(frozen=True)
class Entry:
    """One seed's model of a contender. `point` is None for θ0."""

    scores: PointScores
    method: MethodResult | None
    point: PointResult | None

    @property
    def test(self) -> Faces:
        if self.scores.test is None:
            raise StageError(f"the test scores of point {self.scores.mark} are missing; run the study again")
        return self.scores.test

    def face(self, name: str) -> list[DatasetScore]:
        return self.test.face(name)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Contender:
    """A row of the table, with a model for each seed."""

    label: str
    method: str | None
    words: str
    passes: float
    entries: Sequence[Entry]
    chooses: bool = False

    def drift(self) -> float | None:
        found = [score.loss for e in self.entries for score in e.face("retention") if score.name == DRIFT]
        return sum(found) / len(found) if found else None

    def exact(self) -> float | None:
        found = [sum(s.exact) / len(s.exact) for e in self.entries for s in e.face("in_mixture") if s.exact]
        return sum(found) / len(found) if found else None

    @property
    def choices(self) -> list[str]:
        """What validation chose, seed by seed."""
        if not self.chooses:
            return []
        return [_choice(entry, self.method is None) for entry in self.entries]


def contenders(study: Study, summaries: Sequence[Summary]) -> dict[str, Contender]:
    """Label → contender: θ0; every method; with `*` at its chosen scale; and each pool's best.

    Raises:
        StageError: scores are missing; methods that should have seen the same tokens did not.
    """
    store: dict[str, PointScores] = {}

    def entry(result: MethodResult, index: int) -> Entry:
        point = result.points[index]
        return Entry(_scores(study, point.mark, store), result, point)

    bases = [Entry(_scores(study, item.base, store), None, None) for item in summaries]
    found = {BASE: Contender(BASE, None, "θ0, before tuning", 0.0, bases)}
    pools: dict[str, list[str]] = {}
    for name, method in study.config.methods.items():
        if any(name not in item.methods for item in summaries):
            continue
        results = [item.methods[name] for item in summaries]
        words = describe(method)
        plain = [entry(result, result.plain) for result in results]
        found[name] = Contender(name, name, words, method.passes, plain)
        if len(results[0].points) > 1:
            chosen = [entry(result, result.chosen) for result in results]
            label = name + CHOSEN
            found[label] = Contender(label, name, f"{words}, scale chosen", method.passes, chosen, chooses=True)
        if method.pool is not None:
            pools.setdefault(method.pool, []).append(name)
    for pool, names in pools.items():
        if len(names) < 2:
            continue
        best = [min((item.methods[n] for n in names), key=lambda r: r.points[r.chosen].average) for item in summaries]
        entries = [entry(result, result.chosen) for result in best]
        passes = max(study.config.methods[n].passes for n in names)
        label = BEST + pool
        found[label] = Contender(label, None, f"best of {', '.join(names)}", passes, entries, chooses=True)
    check_tokens(study.config.methods, summaries, study.config.reference)
    return found


def check_tokens(methods: Mapping[str, MethodConfig], summaries: Sequence[Summary], reference: str) -> None:
    """Holds that methods of one pass trained on exactly as many supervised tokens as the reference, by their logs.

    Raises:
        StageError: they did not; names method, seed and both counts.
    """
    for item in summaries:
        base = item.methods.get(reference)
        for name, result in item.methods.items():
            same = base is not None and methods[name].passes == methods[reference].passes
            if base is not None and same and result.supervised_tokens != base.supervised_tokens:
                raise StageError(
                    f"{name} trained on {result.supervised_tokens:,} supervised tokens and {reference} on "
                    f"{base.supervised_tokens:,} (seed {item.seed}, {item.budget}): they cannot be compared"
                )


def describe(method: MethodConfig) -> str:
    """The method in a few words."""
    words = known_splitter(method.splitter).describe(method.groups or "auto")
    words += " joint runs" if method.copies is not None else ""
    extra = [f"{method.epochs:g} epochs"] if method.epochs != 1 else []
    extra += [f"rate × {method.rate:g}"] if method.rate != 1 else []
    extra += [f"decay to θ0 {method.pull:g}"] if method.pull else []
    extra += [f"{method.merge} merge"] if not method.is_published else []
    return ", ".join([words, *extra])


def face_names(contender: Contender) -> list[str]:
    """The faces that the study has."""
    return [name for name in FACES if contender.entries[0].face(name)]


def _scores(study: Study, mark: str, store: dict[str, PointScores]) -> PointScores:
    if mark not in store:
        store[mark] = PointScores.load(study.dir.point(mark))
    return store[mark]


def _choice(entry: Entry, pooled: bool) -> str:
    if entry.point is None or entry.method is None:
        return BASE
    text = f"{entry.method.name} " if pooled else ""
    text += f"× {entry.point.scale:g}"
    return f"{text}, ridge {entry.point.ridge:g}" if entry.point.ridge is not None else text
