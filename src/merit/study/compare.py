"""Paired differences over seeds and examples: intervals, p-values, Holm's correction, effect sizes.

A difference is the mean over seeds of the mean over datasets of the token-weighted mean over examples of (loss of a −
loss of b), example by example: what is hard for both models cancels.

Its variance has two parts. **Seeds**: the spread of the seeds' own differences, s²/S. S seeds know it with only
S − 1 degrees of freedom; a percentile bootstrap over five seeds would give intervals far too short.
**Examples**: by bootstrap, resampling the examples of every dataset (draws are weights, so all draws are one matrix
product). Where every seed draws its own examples, s²/S contains their noise already, and the larger of the two counts;
where all seeds share the same held-out examples they add up. The interval is difference ± t · SE, with S − 1 degrees
of freedom in the first case and Satterthwaite's in the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import StageError
from merit.base.record import Record
from merit.config.sections import PUBLISHED
from merit.config.study import MethodConfig
from merit.evaluate.scores import DatasetScore
from merit.evaluate.statistics import half_width, p_value
from merit.split.splitter import find_splitter, known_splitter
from merit.study.measure import DRIFT, FACES, Face, MethodResult, PointResult, PointScores, Summary
from merit.study.spec import Study

BASE = "base"
CHOSEN = "*"
BEST = "best:"
AVERAGE = "average"
FACE_NAMES = {"in_mixture": "in-mixture", "unseen": "unseen", "retention": "retention", AVERAGE: "average"}

Values = NDArray[np.float64]
KeyT = TypeVar("KeyT")


class Interval(Record):
    """A mean over seeds and its 95% interval."""

    value: float
    low: float
    high: float


class Comparison(Record):
    """Loss of `a` minus loss of `b`. Negative: `a` is better."""

    budget: str
    a: str
    b: str
    face: str  # a face, or `average`
    difference: float
    low: float
    high: float
    p: float
    holm: float
    effect: float | None  # Cohen's d over seeds
    share: float | None  # of what joint training gains on this face over θ0
    wins: int  # datasets of the face on which a is better
    datasets: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`: a claim only where the interval excludes zero."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "undecided"


@dataclass(frozen=True)
class Entry:
    """One seed's model of a contender. `point` is None for θ0."""

    scores: PointScores
    method: MethodResult | None
    point: PointResult | None

    def face(self, name: Face) -> list[DatasetScore]:
        """Test scores, dataset by dataset."""
        if self.scores.test is None:
            raise StageError(f"the test scores of point {self.scores.mark} are missing; run the study again")
        return self.scores.test.face(name)


@dataclass(frozen=True)
class Contender:
    """A row of the table, with a model for each seed."""

    label: str
    method: str | None
    words: str
    passes: float
    entries: Sequence[Entry]
    chooses: bool = False
    share: float = 1.0  # of its methods' training

    @property
    def faces(self) -> list[str]:
        """The faces that the study has, and their average."""
        return [*self._measured, AVERAGE]

    @property
    def _measured(self) -> list[Face]:
        return [name for name in FACES if self.entries[0].face(name)]

    def scores(self, face: str) -> list[list[DatasetScore]]:
        """Seed → dataset → test scores on a face, or on all of them for `average`."""
        names = [name for name in self._measured if face in (name, AVERAGE)]
        return [[score for name in names for score in entry.face(name)] for entry in self.entries]

    def drift(self) -> float | None:
        found = [score.loss for e in self.entries for score in e.face("retention") if score.name == DRIFT]
        return sum(found) / len(found) if found else None

    def exact(self) -> float | None:
        found = [sum(s.exact) / len(s.exact) for e in self.entries for s in e.face("in_mixture") if s.exact]
        return sum(found) / len(found) if found else None

    def right(self, face: Face) -> list[list[DatasetScore]]:
        """Seed → dataset of multiple choice → whether each example's answer is the most likely option, as scores whose
        loss is the share of right answers. Empty if a model was not asked."""
        names = [score.name for score in self.entries[0].face(face) if score.name in self.entries[0].scores.chosen]
        found = [[entry.scores.chosen.get(name, []) for name in names] for entry in self.entries]
        if not names or not all(values for seed in found for values in seed):
            return []
        return [
            [
                DatasetScore(name=name, losses=values, tokens=[1] * len(values), exact=None)
                for name, values in zip(names, seed, strict=True)
            ]
            for seed in found
        ]

    @property
    def models(self) -> tuple[str, ...]:
        """What its models are known by, seed by seed."""
        return tuple(entry.scores.mark for entry in self.entries)

    @property
    def choices(self) -> list[str]:
        """What validation chose, seed by seed."""
        if not self.chooses:
            return []
        return [_choice(entry, self.method is None) for entry in self.entries]


def contenders(study: Study, summaries: Sequence[Summary]) -> dict[str, Contender]:
    """Label → contender: θ0; every method; with `*` at its chosen scale; and each pool's best.

    Raises:
        StageError: scores are missing; or methods trained on unequal numbers of tokens.
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
        for number in range(1, len(results[0].between) + 1):
            points = [result.between[number - 1] for result in results]
            after = [Entry(_scores(study, p.mark, store), r, p) for p, r in zip(points, results, strict=True)]
            label, share = f"{name}@{number}", number / method.rounds
            found[label] = Contender(
                label, None, f"{words}, after round {number}", method.passes * share, after, share=share
            )
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
    """Checks that methods with as many passes as the reference trained on exactly as many supervised tokens, by their
    logs.

    Raises:
        StageError: they did not; names the method, the seed and both counts.
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
    ridge = f" with ridge {method.ridge:g}" if method.ridge is not None else ""
    extra += [f"{method.merge} merge{ridge}"] if not method.is_published else []
    extra += [f"{method.machines} machines, batch × {method.machines}"] if method.machines > 1 else []
    extra += [f"draw {method.draw}"] if method.draw > 1 else []
    extra += [f"{method.rounds} rounds"] if method.rounds > 1 else []
    return ", ".join([words, *extra])


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


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval.

    Attributes:
        effect: Cohen's d over seeds, mean ÷ standard deviation of the seeds' values; None with a single seed.
        p: two-sided, of the value being 0.
        seeds: the value of each seed.
    """

    value: float
    low: float
    high: float
    p: float
    effect: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Bootstrap:
    """How examples are resampled.

    Attributes:
        shared: whether all seeds were measured on the same examples.
        seed: all differences of a study use the same resamples, which are drawn once.
    """

    shared: bool
    draws: int
    seed: int = 20260601  # fixed, so that tables of the same scores are the same


def paired(
    a: Sequence[Sequence[DatasetScore]],
    b: Sequence[Sequence[DatasetScore]] | None,
    bootstrap: Bootstrap,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """The difference a − b, or a's own mean without `b`.

    Args:
        a, b: seed → dataset → scores, in the same order.
        weights: of the datasets; equal if unset.

    Raises:
        ValueError: the two were measured on different examples.
    """
    count = len(a[0])
    share = np.full(count, 1 / count) if weights is None else np.asarray(weights) / sum(weights)
    seeds = np.zeros(len(a))
    parts: list[tuple[float, int]] = []  # variance over examples, and degrees of freedom, of independent parts
    for d, part in enumerate(share):
        values, tokens = _table([seed[d] for seed in a], [seed[d] for seed in b] if b is not None else None)
        weighted, examples = values * tokens, values.shape[1]
        seeds += part * weighted.sum(1) / tokens.sum(1)
        picks = [_resamples(bootstrap, examples, d, 0 if bootstrap.shared else s) for s in range(len(a))]
        means = np.stack([(picks[s] @ weighted[s]) / (picks[s] @ tokens[s]) for s in range(len(a))])  # (seeds, draws)
        scale = (part / len(a)) ** 2 * examples / max(1, examples - 1)
        for row in [means.sum(axis=0)] if bootstrap.shared else means:
            parts.append((scale * float(row.var(ddof=1)), examples - 1))
    return combine(seeds, parts, shared=bootstrap.shared)


@lru_cache(maxsize=4096)
def _resamples(bootstrap: Bootstrap, count: int, dataset: int, copy: int) -> Values:
    """(draws, count): how often each of `count` examples is drawn."""
    rng = np.random.default_rng([bootstrap.seed, count, dataset, copy])
    return rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.draws).astype(np.float64)


def combine(seeds: Values, examples: Sequence[tuple[float, int]], *, shared: bool) -> Estimate:
    """Value and interval from the seeds' values and the bootstrap's variances over examples."""
    count, value = len(seeds), float(np.mean(seeds))
    deviation = float(np.std(seeds, ddof=1)) if count > 1 else 0.0
    over_seeds = [(deviation**2 / count, count - 1)] if count > 1 else []
    over_examples = [(variance, freedom) for variance, freedom in examples if freedom > 0]
    if shared or not over_seeds:
        parts = over_seeds + over_examples
    else:
        # Seeds that happen to agree make no claim surer than their number allows: S − 1 degrees, either way.
        parts = [(max(over_seeds[0][0], sum(variance for variance, _ in over_examples)), count - 1)]
    variance = sum(part for part, _ in parts)
    error = math.sqrt(variance)
    if error == 0:
        return Estimate(value, value, value, 1.0 if value == 0 else 0.0, None, tuple(map(float, seeds)))
    # Satterthwaite: the degrees of freedom of a sum of variances, each estimated with its own.
    known = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    reach = half_width(error, known)
    effect = value / deviation if deviation > 0 else None
    p = p_value(value, error, known)
    return Estimate(value, value - reach, value + reach, p, effect, tuple(map(float, seeds)))


def holm(p: Mapping[KeyT, float]) -> dict[KeyT, float]:
    """Holm's step-down adjustment: key → adjusted p, monotone and at most 1. Controls the chance of any false claim."""
    order = sorted(p, key=lambda key: p[key])
    adjusted: dict[KeyT, float] = {}
    highest = 0.0
    for rank, key in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[key]))
        adjusted[key] = highest
    return adjusted


def _table(a: Sequence[DatasetScore], b: Sequence[DatasetScore] | None) -> tuple[Values, Values]:
    """(seeds, examples) each: values and token weights of one dataset. Seeds with more examples than others lose the
    last ones."""
    if b is not None and any(x.tokens != y.tokens or x.name != y.name for x, y in zip(a, b, strict=True)):
        raise ValueError("models that were measured on different examples cannot be compared")
    count = min(len(score.losses) for score in a)
    values = np.array([score.losses[:count] for score in a], dtype=np.float64)
    if b is not None:
        values = values - np.array([score.losses[:count] for score in b], dtype=np.float64)
    return values, np.array([score.tokens[:count] for score in a], dtype=np.float64)


def shared_examples(study: Study) -> bool:
    """Whether seeds are measured on the same held-out examples: yes, unless every dataset is drawn anew."""
    config = study.config
    datasets = [*config.mixture.values(), *config.unseen.values(), *config.retention.values()]
    return not all(item.path.startswith("reasoning_gym:") for item in datasets)


def compare(study: Study, budget: str, competing: dict[str, Contender]) -> list[Comparison]:
    """Every subject against every control, with Holm's correction over all comparisons of one face at this budget.

    Two labels of the same models (`joint*`, where validation chose scale 1 for every seed) are one test, not two.
    """
    faces, base, reference = competing[BASE].faces, competing[BASE], competing.get(study.config.reference)
    pairs = [(a, b) for a in _subjects(study, competing) for b in _controls(study, competing, a)]
    estimates = {(a, b, face): difference(study, competing[a], competing[b], face) for a, b in pairs for face in faces}
    adjusted: dict[tuple[str, str, str], float] = {}
    for face in faces:
        adjusted |= holm({key: item.p for key, item in estimates.items() if key[2] == face})
    gains = {face: difference(study, reference, base, face).value for face in faces} if reference else {}
    return [
        Comparison(
            budget=budget,
            a=a,
            b=b,
            face=face,
            difference=item.value,
            low=item.low,
            high=item.high,
            p=item.p,
            holm=adjusted[a, b, face],
            effect=item.effect,
            share=item.value / abs(gains[face]) if gains.get(face) else None,
            wins=wins,
            datasets=count,
        )
        for (a, b, face), item in estimates.items()
        for wins, count in [_wins(competing[a], competing[b], face)]
    ]


def _subjects(study: Study, competing: dict[str, Contender]) -> list[str]:
    """The methods to test: those that split by conflict, as published and as validation chose them, and their pools."""
    methods = study.config.methods
    wanted = study.config.subjects or [
        name for name, item in methods.items() if find_splitter(item.splitter).role == "method"
    ]
    curved = {name for name in wanted if not methods[name].is_published}
    # Another merge has no published form: what validation made of it is tested, or its one point.
    labels = [name for name in wanted if name not in curved]
    labels += [name + CHOSEN if name + CHOSEN in competing else name for name in sorted(curved)]
    pools = {methods[name].pool for name in wanted} - {None}
    labels += [BEST + str(pool) for pool in sorted(str(item) for item in pools)]
    return _distinct(competing, labels)


def _controls(study: Study, competing: dict[str, Contender], subject: str) -> list[str]:
    """The methods to test it against: joint training, the same pulled back, its best, soups, and as many random groups
    as the subject has. Where there is no such random method, the best random one."""
    reference, methods = study.config.reference, study.config.methods
    labels = [reference, reference + CHOSEN]
    pools = {item.pool for item in methods.values() if find_splitter(item.splitter).whole_mixture} - {None}
    labels += [BEST + str(pool) for pool in sorted(str(item) for item in pools)]
    groups = methods[subject].groups if subject in methods else None
    random = {name: item for name, item in methods.items() if find_splitter(item.splitter).role == "chance"}
    plain = [name for name, item in random.items() if item.is_published]
    matched = [name for name in plain if groups is not None and random[name].groups == groups]
    best = {BEST + str(item.pool) for item in random.values() if item.pool is not None}
    labels += matched or [label for label in sorted(best) if label in competing] or plain
    own = methods.get(subject.removesuffix(CHOSEN))
    if own is not None and (not own.is_published or own.rounds > 1):
        # Against the token average of the same branches, too; rounds, against one merge; and the same of random groups.
        once = own.model_copy(update={"rounds": 1})
        merges = {PUBLISHED} if own.rounds == 1 else {PUBLISHED, own.merge}
        plain = [n for n, m in methods.items() if m.training == once.training and m.merge in merges]
        labels += [label for name in plain for label in (name, name + CHOSEN)]
        alike = [n for n, m in random.items() if (m.merge, m.rounds) == (own.merge, own.rounds)]
        labels += [name + CHOSEN if name + CHOSEN in competing else name for name in alike]
    return _distinct(competing, [subject, *labels])[1:]


def _distinct(competing: dict[str, Contender], labels: Sequence[str]) -> list[str]:
    """Those of the labels that compete, the first of each with the same models for all seeds."""
    found: dict[tuple[str, ...], str] = {}
    for label in labels:
        if label in competing:
            found.setdefault(competing[label].models, label)
    return list(found.values())


def difference(study: Study, a: Contender, b: Contender | None, face: str) -> Estimate:
    """a − b, or a's own mean without `b`, on one face, or on the unweighted mean of all faces."""
    weights = None
    if face == AVERAGE:  # every face counts the same, whatever the number of its datasets
        sizes = [len(a.scores(name)[0]) for name in a.faces if name != AVERAGE]
        weights = [1 / size / len(sizes) for size in sizes for _ in range(size)]
    bootstrap = Bootstrap(shared_examples(study), study.config.draws)
    return paired(a.scores(face), b.scores(face) if b is not None else None, bootstrap, weights)


def _wins(a: Contender, b: Contender, face: str) -> tuple[int, int]:
    """The number of datasets on which a has the lower loss, summed over seeds; and the number of all datasets."""
    left, right = (np.sum([[score.loss for score in seed] for seed in item.scores(face)], axis=0) for item in (a, b))
    return int((left < right).sum()), len(left)
