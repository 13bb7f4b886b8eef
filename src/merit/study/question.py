"""Does conflict predict harm? θ0 is tuned on every dataset alone, and the loss of all others is looked at."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from merit.evaluation.scores import DatasetScore
from merit.run.fingerprint import fingerprint
from merit.run.record import Record
from merit.study.cells import cell_mark
from merit.study.measure import measure
from merit.study.similarities import VARIANTS, similarities

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
    from merit.errors import InputError

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
