"""Does conflict predict harm? θ0 is tuned on every dataset alone, and the loss of all others is looked at."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from merit.base.errors import InputError
from merit.base.record import Record, fingerprint
from merit.evaluate.scores import DatasetScore, Table
from merit.study.cells import cell_mark
from merit.study.measure import VARIANTS, measure, similarities
from merit.study.results import Answer, Interval, Results

if TYPE_CHECKING:
    from merit.study.job import Job


class QuestionResult(Record):
    """One seed's answer. Matrices are T × T in the order of `names`."""

    mark: str
    names: list[str]
    similarity: dict[str, list[list[float]]]  # variant → matrix
    harm: list[list[float]]  # harm[i][j]: change of the loss on i after tuning on j alone, in nats
    base: list[float]  # θ0's loss on each
    recommended_axes: int  # what `axes: auto` takes


def ask(job: Job) -> QuestionResult:
    """Answers for the job's seed, or returns what an earlier call found.

    Raises:
        InputError, StageError: as training.
    """
    from merit.base.errors import InputError

    question = job.study.config.question
    if question is None:
        raise InputError("the study file asks no question", field="question")
    names = job.data.mixture.names
    specs = [job.data.spec([name], job.share, epochs=question.epochs, rate=question.rate) for name in names]
    mark = fingerprint("question", specs, job.examples.mark, VARIANTS)
    path = job.study.dir.question(job.seed)
    try:
        known = QuestionResult.load(path)
        if known.mark == mark:
            return known
    except InputError:
        pass
    # All held-out examples: nothing is chosen here, and harm is small beside its noise.
    parts = [part for part in (*job.examples.validation, *job.examples.test) if part.face == "in_mixture"]
    tokens = job.study.config.faces.batch_tokens

    def losses(model: object) -> list[float]:
        scores = measure(model, parts, batch_tokens=tokens, precision=job.precision).in_mixture
        return [_joined(scores[i], scores[i + len(names)]) for i in range(len(names))]

    base = losses(job.ray.reset())
    columns = []
    for spec in specs:
        branch, _ = job.train(spec)
        after = losses(job.ray.set(job.ray.step(branch.checkpoint)))
        columns.append([b - a for a, b in zip(base, after, strict=True)])
        if job.study.config.keep == "none":
            shutil.rmtree(job.study.dir.cell(cell_mark(spec)).checkpoint, ignore_errors=True)
    found = similarities(job.data.store, job.data.halves, names)
    result = QuestionResult(
        mark=mark,
        names=names,
        similarity={name: matrix.tolist() for name, matrix in found.items()},
        harm=[list(row) for row in zip(*columns, strict=True)],
        base=base,
        recommended_axes=job.data.evidence.recommended,
    )
    result.save(path)
    return result


def _joined(a: DatasetScore, b: DatasetScore) -> float:
    total = sum(a.tokens) + sum(b.tokens)
    return (a.loss * sum(a.tokens) + b.loss * sum(b.tokens)) / total


Matrix = NDArray[np.float64]
_SEED = 20260602
_FEWEST = 3  # different datasets in a draw


def answers(found: Sequence[QuestionResult], *, draws: int) -> list[Answer]:
    """One a variant, in the order of `VARIANTS`; empty without any seed.

    The bootstrap resamples seeds, and datasets with all their pairs: pairs of one dataset are not independent. A pair
    of two copies of the same dataset is left out.
    """
    if not found:
        return []
    benefit = [-np.asarray(item.harm) for item in found]
    alike = {name: [np.asarray(item.similarity[name]) for item in found] for name in VARIANTS}
    tables = {
        True: ({name: [centre(m) for m in alike[name]] for name in VARIANTS}, [centre(m) for m in benefit]),
        False: (alike, benefit),
    }
    rng = np.random.default_rng(_SEED)
    count = len(found[0].names)
    whole = np.arange(count)
    samples: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while len(samples) < draws:
        nodes = rng.integers(count, size=count)
        if len(set(nodes.tolist())) >= min(_FEWEST, count):  # fewer have no pairs to rank
            samples.append((rng.integers(len(found), size=len(found)), nodes))

    def mean(name: str, seeds: Iterable[int], nodes: NDArray[np.int64], centred: bool) -> float:
        similar, good = tables[centred]
        return float(np.mean([correlation(similar[name][s], good[s], nodes) for s in seeds]))

    result = []
    raw: list[float] = []
    for name in VARIANTS:
        plain = [mean(name, seeds, nodes, False) for seeds, nodes in samples]
        centred = [mean(name, seeds, nodes, True) for seeds, nodes in samples]
        value = mean(name, range(len(found)), whole, True)
        if name == "raw":
            raw = centred
            first = value
        gain = None
        if name != "raw":
            gain = _interval(value - first, [a - b for a, b in zip(centred, raw, strict=True)])
        result.append(
            Answer(
                variant=name,
                rank=_interval(mean(name, range(len(found)), whole, False), plain),
                centred=_interval(value, centred),
                gain=gain,
            )
        )
    return result


def correlation(similarity: Matrix, benefit: Matrix, nodes: NDArray[np.int64]) -> float:
    """Spearman's correlation over ordered pairs of different datasets among `nodes`, which may repeat."""
    pick = np.ix_(nodes, nodes)
    apart = nodes[:, None] != nodes[None, :]
    ranks = [stats.rankdata(matrix[pick][apart]) for matrix in (similarity, benefit)]
    if not all(np.ptp(values) for values in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def centre(matrix: Matrix) -> Matrix:
    """The matrix without what is common to each row and each column, its diagonal left out: how easily dataset i
    changes, and how far tuning on j goes. Least squares; a few sweeps converge."""
    result = matrix.copy()
    off = ~np.eye(len(matrix), dtype=bool)
    for _ in range(50):
        for axis in (0, 1):
            result -= (result * off).sum(axis, keepdims=True) / off.sum(axis, keepdims=True)
    return result


def _interval(value: float, draws: Sequence[float]) -> Interval:
    """Centred on the value, as wide as the draws' middle 95%: resampled datasets repeat, which shifts the draws."""
    low, high = np.quantile(np.asarray(draws) - np.median(draws), [0.025, 0.975])
    return Interval(value=value, low=value + float(low), high=value + float(high))


FACES = ("in_mixture", "unseen", "retention")
EVEN = dict.fromkeys(FACES, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A model that is there, or could be made without training."""

    label: str
    words: str
    chosen_by: Mapping[str, float]  # face → the loss that it is chosen by
    losses: Mapping[str, float]  # face → the loss that is reported


@dataclass(frozen=True)
class Advice:
    """The best candidate by the weighted mean loss, the next of another method, and the best on each face alone."""

    best: Candidate
    next: Candidate | None
    weights: Mapping[str, float]
    specialists: Mapping[str, Candidate]
    note: str

    @property
    def lines(self) -> list[str]:
        """In plain words."""
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
        return [*lines, f"  {self.note}"]


def parse_trade_off(text: str | None) -> dict[str, float]:
    """`in_mixture=2,unseen=1` → weights; a face that is not named weighs nothing; without text all weigh the same.

    Raises:
        InputError: an unknown face, a negative or missing number, all zero.
    """
    if not text:
        return dict(EVEN)
    weights = dict.fromkeys(FACES, 0.0)
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
    """Among all points of all rays at `budget` (default: the last of the file) that saw no more tokens than one pass.

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
        )
        for ray in results.rays
        if ray.budget == budget and words[ray.method].passes <= 1
        for point in ray.points
    ]
    seeds = len(results.seeds_of(budget))
    note = f"chosen on validation examples, reported on test; budget {budget}, {seeds} seed{'s' * (seeds != 1)}"
    return choose(found, weights, note)


def advise_run(table: Table, weights: Mapping[str, float]) -> Advice:
    """Among the merges of one run. Retention is drift.

    Raises:
        InputError: the run has measured nothing to choose by.
    """
    found = []
    for row in table.rows:
        if row.kind == "branch":
            continue
        losses = {"in_mixture": row.in_mixture, "unseen": row.unseen, "retention": row.drift}
        known = {face: value for face, value in losses.items() if value is not None}
        found.append(Candidate(row.label, row.description, known, known))
    note = "one run: chosen on the same held-out examples that it reports, so a little flattered; see the report's ±"
    return choose(found, weights, note)


def choose(found: Sequence[Candidate], weights: Mapping[str, float], note: str) -> Advice:
    """The least weighted mean loss.

    Raises:
        InputError: no candidate, or none of the weighed faces was measured.
    """
    if not found:
        raise InputError("there is no model to choose from yet")
    used = {face: weights[face] for face in found[0].chosen_by if weights.get(face)}
    if not used:
        raise InputError("none of these faces was measured", field="--prefer")
    order = sorted(found, key=lambda item: _mean(item.chosen_by, used))
    best = order[0]
    family = best.label.split(" × ")[0].split("@")[0]
    other = next((item for item in order if item.label.split(" × ")[0].split("@")[0] != family), None)
    specialists = {face: min(found, key=lambda item: item.chosen_by[face]) for face in found[0].chosen_by}
    return Advice(best, other, used, specialists, note)


def _mean(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    used = {face: weight for face, weight in weights.items() if face in losses}
    return sum(losses[face] * weight for face, weight in used.items()) / sum(used.values())
