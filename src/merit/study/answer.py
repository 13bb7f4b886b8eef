"""Which similarity foretells harm: rank correlations over pairs of datasets, with intervals over datasets and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from merit.study.question import QuestionResult
from merit.study.results import Answer, Interval
from merit.study.similarities import VARIANTS

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
