"""The models of a run, measured one after another: by this process, or by several that share them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from merit.base.files import write_text
from merit.base.kept import kept
from merit.base.locks import claim
from merit.base.progress import Counter, FileProgress
from merit.base.record import fingerprint
from merit.context import Method, RunContext
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary
from merit.data.store import EncodedDataset, StoredExample
from merit.evaluate.drift import DriftSet, make_drift_set
from merit.evaluate.scores import DatasetScore, ModelScores
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent
from merit.merge.step import merged_branches
from merit.models.source import weights_fingerprint
from merit.run.events import stage_events
from merit.run.layout import MAIN_METHOD
from merit.workers import open_as_worker, run_workers, worker_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from merit.models.loading import Precision

BASE = "base"
_DRIFT = "drift-set"


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    label: str
    method: str
    kind: str  # base, branch, round (the merge of one before the last), merge
    scale: float
    folder: Path
    fingerprint: str  # of the weights


def subjects(context: RunContext) -> list[Subject]:
    """What is measured, θ0 first."""
    found = [Subject(BASE, BASE, "base", 0.0, context.model.path, context.model.fingerprint)]
    for method in context.methods:
        results = merged_branches(method)
        if method.name == MAIN_METHOD and context.config.evaluate.branches and len(results) > 1:
            for k, result in results.items():
                folder = method.dir.branch(k).checkpoint
                label = f"{method.name}/branch-{k:02d}"
                found.append(Subject(label, method.name, "branch", 1.0, folder, fingerprint(result.files)))
        for one in [] if method.source else method.before:
            folder, label = one.dir.merged(), round_label(one)
            found.append(Subject(label, method.name, "round", 1.0, folder, weights_fingerprint(folder)))
        for scale in method.config.scales:
            label = method.name if scale == 1.0 else f"{method.name}@{scale:g}"
            folder = method.dir.merged(scale)
            found.append(Subject(label, method.name, "merge", scale, folder, weights_fingerprint(folder)))
    return found


def round_label(method: Method) -> str:
    """What the merge of a round before the last is called."""
    return f"{method.name}/round-{method.round}"


def missing(context: RunContext) -> list[tuple[Subject, str]]:
    """The models whose scores are missing or out of date, each with the fingerprint that its scores will have."""
    settings = _settings(context)
    marks = [(subject, fingerprint(settings, subject.fingerprint, subject.kind)) for subject in subjects(context)]
    return [(subject, mark) for subject, mark in marks if not _is_measured(context, subject, mark)]


def measure(context: RunContext, *, share: bool = False) -> int:
    """Writes evaluation/*.json for each model that is `missing`. Returns how many models were measured.

    Args:
        share: skip models that another process is measuring.
    """
    from merit.models.loading import load_model, pick_precision

    config = context.config.evaluate
    todo = missing(context)
    measured = 0
    # Answering costs far more than scoring: the bar counts θ0's own answers to the general prompts too.
    units = config.drift + sum(_units(context, subject) for subject, _ in todo)
    with context.progress.bar("evaluate", total=max(1, units), unit="example") as bar:
        counter = Counter(bar)
        drift = None
        if config.drift:  # also of models that are measured already: the report shows it
            with _mine(context, _DRIFT, share=share, wait=True):
                drift = _drift_set(context, counter)
        precision = pick_precision(context.config.train.precision)
        for subject, mark in todo:
            with _mine(context, subject.label, share=share) as mine:
                if not mine or (share and _is_measured(context, subject, mark)):
                    counter(_units(context, subject))
                    continue
                counter.note(subject.label)
                model = load_model(subject.folder, trust_remote_code=context.model.trust_remote_code).eval()
                _Evaluation(context, model, precision, counter).save(subject, mark, drift)
                measured += 1
    return measured


def _is_measured(context: RunContext, subject: Subject, mark: str) -> bool:
    return kept(context.run.evaluation(subject.label), ModelScores, {"fingerprint": mark}).fresh


def _units(context: RunContext, subject: Subject) -> int:
    """How many examples one model takes: losses, answers and drift."""
    config, datasets = context.config.evaluate, [*context.mixture.datasets, *context.mixture.unseen]
    losses = sum(min(config.held_out, dataset.held_out.examples) for dataset in datasets)
    answers = [min(_answers(context, subject), item.held_out.examples) for item in datasets if item.scoring]
    return losses + sum(answers) + config.drift


def _answers(context: RunContext, subject: Subject) -> int:
    """Examples of a dataset to answer. A branch is measured by its losses alone: it is a part, not a result."""
    return 0 if subject.kind == "branch" else context.config.evaluate.generate


def score_examples(
    model: PreTrainedModel,
    parts: Mapping[str, Sequence[Encoded]],
    *,
    batch_tokens: int,
    precision: Precision,
    advance: Callable[[int], None] = lambda _: None,
) -> list[DatasetScore]:
    """Name → examples: the loss of each, and whether greedy decoding would give its reference word for word.

    Args:
        advance: told the number of examples that are done.
    """
    from merit.compute.losses import example_scores

    # One pool over all parts: batches of like length leave the least padding.
    rows = [row for part in parts.values() for row in part]
    losses, tokens, exact = example_scores(model, rows, batch_tokens=batch_tokens, precision=precision, advance=advance)
    ends = [0, *accumulate(len(part) for part in parts.values())]
    return [
        DatasetScore(name=name, losses=losses[start:end], tokens=tokens[start:end], exact=exact[start:end])
        for name, start, end in zip(parts, ends, ends[1:], strict=False)
    ]


@dataclass(frozen=True)
class _Evaluation:
    """One model of a run, and how it is measured.

    Attributes:
        advance: told the number of examples that are done.
    """

    context: RunContext
    model: PreTrainedModel
    precision: Precision
    advance: Callable[[int], None]

    def save(self, subject: Subject, mark: str, drift: DriftSet | None) -> None:
        """Writes evaluation/<label>.json: held-out loss on every dataset, exact match where it can be scored, drift."""
        started, mixture = time.monotonic(), self.context.mixture
        # All datasets are answered together: fp32 writes the same answers whatever runs beside. Losses in bf16 depend
        # on what they are batched with, so these stay apart.
        scored = [item.name for item in (*mixture.datasets, *mixture.unseen) if item.scoring]
        exact = self._exact(scored, _answers(self.context, subject))
        scores = ModelScores(
            label=subject.label,
            method=subject.method,
            kind=subject.kind,
            scale=subject.scale,
            fingerprint=mark,
            in_mixture=self._scores(mixture.datasets, exact),
            unseen=self._scores(mixture.unseen, exact),
            drift=self._losses({"drift": drift.encoded})[0] if drift else None,
            seconds=0,
        )
        scores = scores.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
        scores.save(self.context.run.evaluation(subject.label))

    def _scores(self, datasets: Sequence[DatasetSummary], exact: Mapping[str, list[float]]) -> list[DatasetScore]:
        limit = self.context.config.evaluate.held_out
        parts = {item.name: [row.encoded for row in self._rows(item.name, limit)] for item in datasets}
        return [score.model_copy(update={"exact": exact.get(score.name)}) for score in self._losses(parts)]

    def _rows(self, name: str, count: int) -> list[StoredExample]:
        """The first held-out examples of a dataset."""
        data = EncodedDataset.open(self.context.run.data(name))
        return [data[int(row)] for row in data.held_out[:count]]

    def _losses(self, parts: Mapping[str, Sequence[Encoded]]) -> list[DatasetScore]:
        tokens = self.context.config.evaluate.batch_tokens
        found = score_examples(self.model, parts, batch_tokens=tokens, precision=self.precision, advance=self.advance)
        return [score.model_copy(update={"exact": None}) for score in found]

    def _exact(self, names: Sequence[str], count: int) -> dict[str, list[float]]:
        from merit.evaluate.answers import AnswerReader, greedy_answers, score_answer

        config, tokenizer = self.context.config.evaluate, self.context.tokenizer
        examples = [(name, row) for name in names for row in self._rows(name, count)]
        answers = greedy_answers(
            self.model,
            tokenizer,
            [example.prompt_ids for _, example in examples],
            [example.encoded.images[: example.encoded.prompt_images] for _, example in examples],
            max_new_tokens=config.max_new_tokens,
            batch_tokens=config.batch_tokens,
            advance=self.advance,
        )
        exact: dict[str, list[float]] = {}
        reader = AnswerReader.of(tokenizer)
        for (name, example), answer in zip(examples, answers, strict=True):
            text = reader.text(answer)
            score = score_answer(text, reference=example.reference, verifier=example.verifier)
            exact.setdefault(name, []).append(score)
        return exact


def _settings(context: RunContext) -> str:
    """Fingerprint of what all scores depend on besides the weights."""
    from merit.models.loading import pick_precision

    precision = pick_precision(context.config.train.precision)
    return fingerprint(context.config.evaluate, precision, context.data_fingerprints(), context.model.fingerprint)


def _mine(context: RunContext, label: str, *, share: bool, wait: bool = False) -> AbstractContextManager[bool]:
    if not share:
        return nullcontext(True)
    name = context.run.evaluation(label).with_suffix(".lock").name
    return claim(context.run.evaluations / "jobs" / name, wait_seconds=math.inf if wait else 0)


def _drift_set(context: RunContext, counter: Counter) -> DriftSet:
    """θ0's answers to the general prompts: the stored ones, or new ones."""
    from merit.data.encode import Encoder
    from merit.models.loading import load_model

    config, settings = context.config.evaluate, _settings(context)
    stored = kept(context.run.drift, DriftSet, {"fingerprint": settings}).record
    if stored is not None:
        counter(config.drift)
        return stored
    made = make_drift_set(
        load_model(context.model.path, trust_remote_code=context.model.trust_remote_code).eval(),
        Encoder(context.tokenizer, context.mixture.max_length),
        config,
        settings,
        counter,
    )
    made.save(context.run.drift)
    return made


def spread(context: RunContext, models: int) -> None:
    """Measures `models` models with as many workers as there are devices.

    On one CPU this is no faster than one process with all cores, but the sums come out the same with every engine.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    run_workers(context, models, partial(_job, context))


def run_worker(root: Path, worker: int, precision: str | None = None) -> None:
    """The job of one worker: measures models until every one is measured or in another worker's hands.

    Raises:
        InputError: as `open_as_worker`; or the run's models are not merged yet.
    """
    die_with_parent()
    context = open_as_worker(root, precision)
    job = _job(context, worker)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"evaluate worker {worker}") as facts:
        facts |= {"models": measure(context, share=True)}
    write_text(job.done, "")


def _job(context: RunContext, worker: int) -> Job:
    arguments = ("evaluate", str(context.run.root.resolve()))
    return worker_job(context, context.run.evaluations / "jobs", "evaluation", "example", worker, arguments)
