"""The split stage: one entry for all splitters. No torch, no model: it runs in milliseconds, anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError, StageError
from merit.config.split import SplitterName
from merit.conflict.records import AxesResult
from merit.data.mixture import Mixture
from merit.split.adversarial import adversarial_partition
from merit.split.kmeans import kmeans_partition
from merit.split.manual import manual_partition
from merit.split.partition import Partition
from merit.split.pca import pca_partition
from merit.split.random import random_partition
from merit.split.replicate import replicate_partition
from merit.split.single import single_partition

NEEDS_CONFLICT: frozenset[SplitterName] = frozenset({"pca", "kmeans", "adversarial"})


def make_partition(
    splitter: SplitterName,
    mixture: Mixture,
    axes: AxesResult | None,
    similarity: NDArray[np.float64] | None,
    *,
    r: int,
    seed: int,
    file: Path | None,
) -> Partition:
    """The mixture's datasets in K = 2^r groups (`single`: one; `manual`: as the file says).

    Args:
        axes: what the conflict stage found, in the mixture's order; only `NEEDS_CONFLICT` use it.
        similarity: the T×T cosines of the same.
        seed: of `random`, `adversarial` and `kmeans`.
        file: of `manual`.

    Raises:
        InputError: fewer datasets than groups; a wrong or missing file.
        StageError: the conflict stage belongs to another mixture, or has not run.
    """
    tokens = mixture.planned_tokens
    if splitter == "single":
        return single_partition(tokens)
    if splitter == "replicate":
        return replicate_partition(tokens, r=r)
    if splitter == "manual":
        if file is None:
            raise InputError("the `manual` splitter needs a file of groups", field="split.file")
        return manual_partition(file, tokens)
    if splitter == "random":
        return random_partition(tokens, r=r, seed=seed)
    if axes is None or similarity is None or axes.names != mixture.names:
        raise StageError(f"the splitter `{splitter}` needs this mixture's conflict stage; run `merit conflict` first")
    if splitter != "adversarial" and r > min(map(len, axes.scores)):
        raise StageError(f"the conflict stage kept fewer than {r} axes; run `merit conflict` again")
    if splitter == "pca":
        return pca_partition(axes, tokens, r=r)
    if splitter == "kmeans":
        return kmeans_partition(axes, tokens, r=r, seed=seed)
    return adversarial_partition(mixture.names, similarity, tokens, r=r, seed=seed)
