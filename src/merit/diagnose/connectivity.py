"""Linear mode connectivity: is there a hill on the straight line between two models?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from merit.base.progress import SILENT, Counter, Progress
from merit.diagnose.journal import Journal
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.models import BASE, MERGE, Models
from merit.diagnose.records import LmcResult, Segment
from merit.diagnose.resample import Matrix, Resampler, interval


def segment_pairs(models: Models) -> list[tuple[str, str]]:
    """All pairs of branches, every branch with the merge, every branch with θ0, θ0 with the merge."""
    branches = models.branch_labels
    return [
        *itertools.combinations(branches, 2),
        *((branch, MERGE) for branch in branches),
        *((BASE, branch) for branch in branches),
        (BASE, MERGE),
    ]


def connectivity(
    live: LiveModel,
    pairs: Sequence[tuple[str, str]],
    sets: Mapping[str, LossSet],
    *,
    points: int,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> LmcResult:
    """Losses along each segment, at `points` equally spaced t, ends included.

    Args:
        sets: `held_out`, and `train` if it is wanted.

    Raises:
        InputError: checkpoints of different layouts.
        StageError: a loss is not finite.
    """
    journal = journal or Journal()
    inner = np.linspace(0, 1, points)[1:-1]
    ends = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    passes = len(ends) + len(pairs) * len(inner)
    with progress.bar(
        "connectivity", total=passes * sum(len(item.rows) for item in sets.values()), unit="example"
    ) as bar:
        counter = Counter(bar)

        def losses(what: str, coefficients: Mapping[str, float]) -> dict[str, list[float]]:
            live.set(coefficients)
            return {face: item.measure(live.model, what, counter).tolist() for face, item in sets.items()}

        at_end = {label: journal.get(label, partial(losses, label, {label: 1.0})) for label in ends}
        found: dict[str, list[Segment]] = {face: [] for face in sets}
        for a, b in pairs:
            name = f"{a} – {b}"
            counter.note(name)

            def along(a: str = a, b: str = b) -> list[dict[str, list[float]]]:
                return [losses(f"the point t = {t:.2f} from {a} to {b}", {a: 1 - t, b: t}) for t in inner.tolist()]

            between = journal.get(name, along)
            for face, item in sets.items():
                rows = [at_end[a][face], *(point[face] for point in between), at_end[b][face]]
                found[face].append(describe_segment(a, b, np.array(rows), item.resampler))
    return LmcResult(
        fingerprint="",
        seconds=0,
        held_out=found["held_out"],
        train=found.get("train", []),
        examples=len(sets["held_out"].rows),
        datasets=sets["held_out"].datasets,
    )


def describe_segment(a: str, b: str, losses: Matrix, resampler: Resampler) -> Segment:
    """Peak over the chord and its interval, from (points, N) losses of the same examples at each t.

    Every resample has its own ends and its own largest point, so the interval covers the choice of t as well. A maximum
    over noise is biased upward: an interval that holds 0 is no barrier.
    """
    t = np.linspace(0, 1, len(losses))
    mean = resampler.mean(losses)
    chord = (1 - t) * mean[0] + t * mean[-1]
    drawn = resampler.drawn(losses)
    over = drawn - np.outer(drawn[:, 0], 1 - t) - np.outer(drawn[:, -1], t)
    where = 1 + int(np.argmax((mean - chord)[1:-1]))
    return Segment(
        a=a,
        b=b,
        t=t.tolist(),
        loss=mean.tolist(),
        chord=chord.tolist(),
        peak=interval(float((mean - chord)[where]), over[:, 1:-1].max(1)),
        at=float(t[where]),
    )
