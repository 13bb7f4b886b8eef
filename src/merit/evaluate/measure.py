"""The models of a run, measured one after another: by this process, or by several that share them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merit.base.files import write_text
from merit.base.kept import kept
from merit.base.locks import claim
from merit.base.progress import Counter, FileProgress
from merit.base.record import fingerprint
from merit.config.sections import EvaluateConfig
from merit.context import RunContext
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.store import EncodedDataset
from merit.evaluate.drift import DriftSet, make_drift_set
from merit.evaluate.scores import DatasetScore, ModelScores, Subject, stored_scores, work_units
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent
from merit.merge.step import merged_branches
from merit.models.source import weights_fingerprint
from merit.run.events import stage_events
from merit.run.layout import MAIN_METHOD, RunDir
from merit.workers import open_as_worker, run_workers, worker_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from merit.models.loading import Precision

BASE = "base"
_DRIFT = "drift-set"


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
        for scale in method.config.scales:
            label = method.name if scale == 1.0 else f"{method.name}@{scale:g}"
            folder = method.dir.merged(scale)
            found.append(Subject(label, method.name, "merge", scale, folder, weights_fingerprint(folder)))
    return found


def missing(context: RunContext) -> list[tuple[Subject, str]]:
    """The models whose figures are not there or hold no more, each with the fingerprint that its figures will have."""
    settings = _settings(context)
    marks = [(subject, fingerprint(settings, subject.fingerprint, subject.kind)) for subject in subjects(context)]
    return [(subject, mark) for subject, mark in marks if stored_scores(context.run, subject, mark) is None]


def measure(context: RunContext, *, share: bool = False) -> int:
    """Writes evaluation/*.json of what is missing. Returns how many models were measured.

    Args:
        share: leave out what another process has in hand.
    """
    from merit.models.loading import load_model, pick_precision

    config, mixture, run = context.config.evaluate, context.mixture, context.run
    todo = missing(context)
    measured = 0
    # Answering costs far more than scoring: the bar counts θ0's own answers to the general prompts too.
    units = config.drift + sum(work_units(mixture, config, subject.kind) for subject, _ in todo)
    with context.progress.bar("evaluate", total=max(1, units), unit="example") as bar:
        counter = Counter(bar)
        drift = None
        if config.drift:  # also of models that are measured already: the report shows it
            with _mine(context, _DRIFT, share=share, wait=True):
                drift = _drift_set(context, counter)
        precision = pick_precision(context.config.train.precision)
        on = Evaluation(run, mixture, context.tokenizer, config, drift, precision, counter)
        for subject, mark in todo:
            with _mine(context, subject.label, share=share) as mine:
                if not mine or (share and stored_scores(run, subject, mark) is not None):
                    counter(work_units(mixture, config, subject.kind))
                    continue
                counter.note(subject.label)
                model = load_model(subject.folder, trust_remote_code=context.model.trust_remote_code).eval()
                evaluate_model(on, subject, model, fingerprint=mark)
                measured += 1
    return measured


def _settings(context: RunContext) -> str:
    """What all figures depend on beside the weights."""
    from merit.models.loading import pick_precision

    precision = pick_precision(context.config.train.precision)
    return fingerprint(context.config.evaluate, precision, context.data_fingerprints(), context.model.fingerprint)


def _mine(context: RunContext, label: str, *, share: bool, wait: bool = False) -> AbstractContextManager[bool]:
    if not share:
        return nullcontext(True)
    name = context.run.evaluation(label).with_suffix(".lock").name
    return claim(context.run.evaluations / "jobs" / name, wait_seconds=math.inf if wait else 0)


def _drift_set(context: RunContext, counter: Counter) -> DriftSet:
    """θ0's answers to the general prompts: those stored, or fresh ones."""
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

    On one CPU that is no quicker than one process with all cores; but it makes the sums of every engine the same.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    run_workers(context, models, partial(_job, context))


def run_worker(root: Path, worker: int, precision: str | None = None) -> None:
    """The job: measures models until none is left that no other worker has in hand.

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


@dataclass(frozen=True)
class Evaluation:
    """What every model of a run is evaluated on, and how.

    Attributes:
        drift: θ0's answers to general prompts, if drift is measured.
        advance: told the number of examples that are done.
    """

    run: RunDir
    mixture: Mixture
    tokenizer: PreTrainedTokenizerBase
    config: EvaluateConfig
    drift: DriftSet | None
    precision: Precision
    advance: Callable[[int], None] = lambda _: None


def evaluate_model(on: Evaluation, subject: Subject, model: PreTrainedModel, *, fingerprint: str) -> ModelScores:
    """Held-out loss on every dataset, exact match where it can be scored, drift; written to evaluation/<label>.json.

    A branch is measured by its losses alone: it is a part, not a result.
    """
    started = time.monotonic()
    generate = on.config.generate if subject.kind != "branch" else 0

    def measure(datasets: Sequence[DatasetSummary]) -> list[DatasetScore]:
        losses = _losses(on, model, datasets)
        exact = _exact(on, model, datasets, generate)
        return [score.model_copy(update={"exact": exact.get(score.name)}) for score in losses]

    scores = ModelScores(
        label=subject.label,
        method=subject.method,
        kind=subject.kind,
        scale=subject.scale,
        fingerprint=fingerprint,
        in_mixture=measure(on.mixture.datasets),
        unseen=measure(on.mixture.unseen),
        drift=_drift(on, model, on.drift) if on.drift else None,
        seconds=0,
    )
    scores = scores.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    scores.save(on.run.evaluation(subject.label))
    return scores


def _losses(on: Evaluation, model: PreTrainedModel, datasets: Sequence[DatasetSummary]) -> list[DatasetScore]:
    rows, owners = [], []
    for index, dataset in enumerate(datasets):
        stored = EncodedDataset.open(on.run.data(dataset.name))
        for row in stored.held_out[: on.config.held_out]:
            example = stored[int(row)]
            rows.append(example.encoded)
            owners.append(index)
    # One pool over all datasets: batches of like length leave the least padding.
    losses, tokens = _score(on, model, rows)
    scores = []
    for index, dataset in enumerate(datasets):
        mine = [position for position, owner in enumerate(owners) if owner == index]
        scores.append(
            DatasetScore(
                name=dataset.name,
                losses=[losses[position] for position in mine],
                tokens=[tokens[position] for position in mine],
                exact=None,
            )
        )
    return scores


def _score(on: Evaluation, model: PreTrainedModel, rows: Sequence[Encoded]) -> tuple[list[float], list[int]]:
    from merit.compute.losses import example_losses

    return example_losses(model, rows, batch_tokens=on.config.batch_tokens, precision=on.precision, advance=on.advance)


def _exact(
    on: Evaluation, model: PreTrainedModel, datasets: Sequence[DatasetSummary], generate: int
) -> dict[str, list[float]]:
    from merit.evaluate.answers import greedy_answers, score_answer

    examples = []
    for dataset in datasets if generate else ():
        if dataset.scoring:
            stored = EncodedDataset.open(on.run.data(dataset.name))
            examples += [(dataset.name, stored[int(row)]) for row in stored.held_out[:generate]]
    answers = greedy_answers(
        model,
        on.tokenizer,
        [example.prompt_ids for _, example in examples],
        [example.pictures[: example.prompt_images] for _, example in examples],
        max_new_tokens=on.config.max_new_tokens,
        batch_tokens=on.config.batch_tokens,
        advance=on.advance,
    )
    exact: dict[str, list[float]] = {}
    for (name, example), answer in zip(examples, answers, strict=True):
        text = on.tokenizer.decode(answer, skip_special_tokens=True)
        score = score_answer(text, reference=example.reference, verifier=example.verifier)
        exact.setdefault(name, []).append(score)
    return exact


def _drift(on: Evaluation, model: PreTrainedModel, drift: DriftSet) -> DatasetScore:
    losses, tokens = _score(on, model, drift.encoded)
    return DatasetScore(name="drift", losses=losses, tokens=tokens, exact=None)
