"""Stage `split`: one partition a method."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.base.record import fingerprint
from merit.config.sections import UNSPLIT
from merit.conflict.axes import AxesResult
from merit.conflict.similarity import half_gram, load_similarity
from merit.conflict.step import wanted as has_conflict
from merit.context import Method, RunContext, Step
from merit.gradients.store import SketchStore
from merit.run.layout import MAIN_METHOD
from merit.split.evidence import AxesEvidence, weigh_axes
from merit.split.partition import Partition, extend_partition
from merit.split.splitter import SplitRequest, known_splitter, make_partition

NAME = "split"
_DRAW_STEP = 1_000_003  # between the seeds of two draws: no draw is another seed's
_LOG_WIDTH = 100  # characters of a line where there is no terminal
_log = logging.getLogger(__name__)


def depends(context: RunContext) -> dict[str, str]:
    """The splitters, what the cuts balance, and the axes."""
    run, mixture, balance = context.run, context.mixture, context.config.split.balance
    files = [Path(method.config.file) for method in context.trained if method.config.file]
    return {
        "split": fingerprint(
            [
                [
                    *(m.name, m.splitter, m.config.axes, m.config.file),
                    *([m.config.draw] if m.config.draw > 1 else []),
                    *extensions.marks("splitters", m.splitter),
                ]
                for m in context.trained
            ]
        ),
        "files": fingerprint([sha256_file(file) if file.is_file() else None for file in files]),
        "tokens": fingerprint(mixture.planned_tokens)
        if balance == "tokens"
        else fingerprint(mixture.planned_tokens, mixture.planned_examples),
        "conflict": fingerprint([sha256_file(file) for file in (run.axes, run.similarity, run.conflict)])
        if has_conflict(context)
        else "-",
        "seed": fingerprint(context.config.seed),
        "kept": fingerprint([sha256_file(file) for file in _kept_files(context)]),
    }


def _kept_files(context: RunContext) -> list[Path]:
    method = context.methods[0].dir
    kept = context.config.split.keep
    return [file for file in (method.kept_partition, method.kept_axes) if kept and file.is_file()]


def files(context: RunContext) -> list[Path]:
    """What must not be damaged, nor edited: the splitter `manual` is for groups of one's own."""
    return [context.run.axes_evidence, *(method.dir.partition for method in context.trained)]


def run(context: RunContext) -> dict[str, Any]:
    """Writes split/partition.json of every method, and what each further axis would be worth."""
    axes = AxesResult.load(context.run.axes) if has_conflict(context) else None
    similarity = load_similarity(context.run.similarity) if has_conflict(context) else None
    evidence = _weigh(context, axes) if axes is not None else None
    groups = {}
    for method in context.trained:
        if method.name == MAIN_METHOD and context.config.split.keep:
            partition = _kept(context, method, similarity)
            partition.save(method.dir.partition)
            groups[method.name] = [group.tokens for group in partition.groups]
            continue
        r = method.config.axes or 1
        if r == "auto":
            if evidence is None:
                raise InputError("`auto` needs two calibration examples a dataset to judge by", field="split.axes")
            r = evidence.recommended
        partition = make_partition(
            method.splitter if r > 0 else UNSPLIT,
            SplitRequest(
                context.mixture.planned_tokens,
                examples=context.mixture.planned_examples,
                balance=context.config.split.balance,
                r=r,
                seed=context.config.seed + _DRAW_STEP * (method.config.draw - 1),
                axes=axes,
                similarity=similarity,
                file=Path(method.config.file) if method.config.file else None,
            ),
        )
        partition.save(method.dir.partition)
        groups[method.name] = [group.tokens for group in partition.groups]
    main = Partition.load(context.methods[0].dir.partition)
    if evidence is not None:
        _log.info("%s", evidence.words(len(main.groups)))
    _log.info("%s", main.in_a_line(shutil.get_terminal_size((_LOG_WIDTH, 0)).columns))
    return {"group_tokens": groups}


def _weigh(context: RunContext, axes: AxesResult) -> AxesEvidence | None:
    """Evidence for each further axis; None where a dataset has no second half to judge by."""
    halves = half_gram(SketchStore.open(context.run.gradients).companion, axes.names)
    if halves.tokens.min() == 0:
        context.run.axes_evidence.unlink(missing_ok=True)  # of an earlier, larger calibration set
        return None
    evidence = weigh_axes(halves, context.mixture.sizes(context.config.split.balance), centre=axes.centre)
    evidence.save(context.run.axes_evidence)
    return evidence


def _kept(context: RunContext, method: Method, similarity: np.ndarray | None) -> Partition:
    mixture = context.mixture
    kept, axes = Partition.load(method.dir.kept_partition), None
    if method.dir.kept_axes.is_file() and known_splitter(kept.splitter).on_axes:
        axes = AxesResult.load(method.dir.kept_axes)
    return extend_partition(kept, axes, mixture.names, similarity, mixture.planned_tokens)


def describe(method: Method, groups: int) -> str:
    """The method in a few words, for tables."""
    return known_splitter(method.splitter).describe(groups)


def _says(context: RunContext) -> str:
    return f"splitting {len(context.config.mixture)} datasets into groups"


STEP = Step(NAME, run, depends, says=_says, files=files)
