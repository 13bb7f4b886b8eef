"""Does conflict predict harm? θ0 is tuned on every dataset alone, and the loss of all others is measured.

The study asks which of these similarities between two datasets' gradients predicts harm:

raw             cosine of the mean gradients, as published
disattenuated   cosine of the true means, as estimated: raw divided by √(reliability · reliability)
matrices        without norm weights and biases, which hold much of the energy in few coordinates
adam            gradients divided by √RMS of the mixture's: the inner product ⟨g_i, g_j / RMS⟩, the first-order effect
                of AdamW's step on j on the loss of i
rms             gradients divided by the RMS: every coordinate counts alike (the diagonal Fisher's inverse as metric)
curvature       the same with damping: ⟨g_i, (F + λ)⁻¹ g_j⟩, F the mixture's mean squared gradient, λ its mean

RMS and F are means over the half-sets of all datasets, for each number that the sketch keeps. For a full sketch they
are exact; in a fold each number is a sum of a hundred coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import Record, fingerprint
from merit.conflict.similarity import HalfGram, cosines, disattenuated, half_gram
from merit.gradients.store import SketchStore
from merit.split.evidence import AxesEvidence
from merit.study.cells import cell_mark, without_place
from merit.study.compare import Interval
from merit.study.measure import Part, measure

if TYPE_CHECKING:
    from merit.study.job import Job


class Answer(Record):
    """How well one similarity predicts harm: Spearman's correlation of similarity and benefit over pairs."""

    variant: str
    rank: Interval  # of similarity with the fall of i's loss after tuning on j
    centred: Interval  # the same without what is common to all pairs of i, and to all of j
    gain: Interval | None  # `centred` minus that of `raw`, paired; None for `raw` itself


Matrix = NDArray[np.float64]
VARIANTS = ("raw", "disattenuated", "matrices", "adam", "rms", "curvature")
_COLUMNS = 1 << 17


def similarities(store: SketchStore, halves: HalfGram, names: Sequence[str]) -> dict[str, Matrix]:
    """Variant → (T, T). Reads the store twice.

    Raises:
        InputError: a row is missing or truncated.
    """
    tokens = np.array([row.tokens for row in store.rows(names)], dtype=np.float64)  # (T, 2)
    matrix = _matrix_columns(store)
    level = sum(float(second.sum()) for _, _, second in _blocks(store, names, tokens)) / max(1, store.numbers)
    found = {name: np.zeros((len(names), len(names))) for name in VARIANTS if name != "disattenuated"}
    for start, means, second in _blocks(store, names, tokens):
        live = second > 0
        means, second = means[:, live], second[live]
        kept = matrix[start : start + len(live)][live]
        scaled = {
            "raw": means,
            "matrices": means[:, kept],
            "adam": means / second**0.25,
            "rms": means / second**0.5,
            "curvature": means / (second + level) ** 0.5,
        }
        for name, part in scaled.items():
            found[name] += part @ part.T
    result = {name: cosines(products) for name, products in found.items()}
    result["disattenuated"] = np.nan_to_num(disattenuated(halves, result["raw"]), nan=0.0)
    return {name: result[name] for name in VARIANTS}


def _blocks(
    store: SketchStore, names: Sequence[str], tokens: NDArray[np.float64]
) -> Iterator[tuple[int, Matrix, NDArray[np.float64]]]:
    """First column; mean gradients (T, columns); mean square (columns,) over datasets and half-sets."""
    for start in range(0, store.numbers, _COLUMNS):
        stop = min(start + _COLUMNS, store.numbers)
        sums = np.stack([store.read_halves(name, start, stop) for name in names]).astype(np.float64)  # (T, 2, columns)
        means = sums.sum(axis=1) / tokens.sum(axis=1)[:, None]
        halves = sums / np.maximum(tokens, 1)[:, :, None]
        yield start, means, (halves**2).mean(axis=(0, 1))


def _matrix_columns(store: SketchStore) -> NDArray[np.bool_]:
    """(numbers,) whether a column belongs to a matrix. In a hashed row parameters are mixed: all columns count."""
    layout = store.info.layout
    found = np.ones(store.numbers, np.bool_)
    if not layout.spec.hashed:
        for tensor in layout.tensors:
            if len(tensor.shape) < 2:
                found[tensor.start : tensor.stop] = False
    return found


class QuestionResult(Record):
    """One seed's answer. Matrices are T × T in the order of `names`."""

    mark: str
    names: list[str]
    similarity: dict[str, list[list[float]]]  # variant → matrix
    harm: list[list[float]]  # harm[i][j]: change of the loss on i after tuning on j alone, in nats
    base: list[float]  # θ0's loss on each
    recommended_axes: int  # what `axes: auto` takes


def ask(job: Job) -> QuestionResult:
    """Answers the question for the job's seed, or returns the answer that is kept.

    Raises:
        InputError, StageError: as training.
    """
    study, data = job.study, job.data
    question = study.config.question
    if question is None:
        raise InputError("the study file asks no question", field="question")
    names = data.mixture.names
    train = study.config.train
    recipe = train.model_copy(
        update={"epochs": train.epochs * question.epochs, "learning_rate": train.learning_rate * question.rate}
    )
    specs = [data.spec([name], job.share, recipe.model_copy(update={"pull": 0.0})) for name in names]
    mark = fingerprint("question", without_place(specs), job.examples.mark, VARIANTS)
    same = {mark, fingerprint("question", specs, job.examples.mark, VARIANTS)}  # which earlier versions wrote
    path = study.dir.question(job.seed)
    known = kept(path, QuestionResult, {"mark": same}).record
    if known is not None:
        return known
    # All held-out examples: nothing is chosen here, and harm is small beside its noise.
    parts = [
        Part(chosen.face, chosen.name, [*chosen.rows, *reported.rows])
        for chosen, reported in zip(job.examples.validation, job.examples.test, strict=True)
        if chosen.face == "in_mixture"
    ]
    tokens = study.config.faces.batch_tokens

    def losses(model: object) -> list[float]:
        scores = measure(model, parts, batch_tokens=tokens, precision=job.precision)
        return [score.loss for score in scores.in_mixture]

    base = losses(job.ray.reset())
    columns = []
    for spec in specs:
        after = losses(job.ray.set(job.ray.step(job.train(spec).branch.checkpoint)))
        columns.append([b - a for a, b in zip(base, after, strict=True)])
        job.drop_weights(cell_mark(spec))
    run = data.context.run
    store = SketchStore.open(run.gradients)
    found = similarities(store, half_gram(store.companion, names), names)
    result = QuestionResult(
        mark=mark,
        names=names,
        similarity={name: matrix.tolist() for name, matrix in found.items()},
        harm=[list(row) for row in zip(*columns, strict=True)],
        base=base,
        recommended_axes=AxesEvidence.load(run.axes_evidence).recommended,
    )
    result.save(path)
    return result


_SEED = 20260602
_FEWEST = 3  # different datasets in a draw


def answers(found: Sequence[QuestionResult], *, draws: int) -> list[Answer]:
    """An answer for each variant, in the order of `VARIANTS`; empty without a seed.

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
    """The matrix without its row and column effects, which are how easily dataset i changes, and how far tuning on j
    goes. Least squares without the diagonal; a few sweeps converge."""
    result = matrix.copy()
    off = ~np.eye(len(matrix), dtype=bool)
    for _ in range(50):
        for axis in (0, 1):
            result -= (result * off).sum(axis, keepdims=True) / off.sum(axis, keepdims=True)
    return result


def _interval(value: float, draws: Sequence[float]) -> Interval:
    """The interval around the value, as wide as the middle 95% of the draws. Datasets repeat in a draw, which shifts
    all draws, so their median is taken off."""
    low, high = np.quantile(np.asarray(draws) - np.median(draws), [0.025, 0.975])
    return Interval(value=value, low=value + float(low), high=value + float(high))
