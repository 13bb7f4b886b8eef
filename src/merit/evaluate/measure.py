"""The models of a run, measured by this process, or by several that share them piece by piece."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.base.errors import InputError, StageError
from merit.base.files import write_text
from merit.base.kept import kept
from merit.base.locks import claim
from merit.base.machine import merit_command
from merit.base.progress import Counter, FileProgress
from merit.base.record import fingerprint
from merit.context import RunContext
from merit.data.example import Encoded
from merit.evaluate.drift import DriftSet, make_drift_set
from merit.evaluate.pieces import HALVES, Evaluation, by_dataset
from merit.evaluate.scores import DatasetScore
from merit.evaluate.subjects import Subject, subjects
from merit.evaluate.vllm_engine import VLLM_ENVIRONMENT, GenerationEngine, answers_by_vllm, picked_engine
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent
from merit.run.events import stage_events
from merit.workers import open_as_worker, run_jobs, run_workers, worker_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from merit.models.loading import Precision

_DRIFT = "drift-set"


def missing(context: RunContext) -> list[tuple[Subject, str]]:
    """The models whose scores are missing or out of date, each with the fingerprint that its scores will have."""
    settings = _settings(context)
    marks = [(subject, fingerprint(settings, subject.fingerprint, subject.kind)) for subject in subjects(context)]
    return [(subject, mark) for subject, mark in marks if not _evaluation(context, subject, mark).is_measured]


def measure(context: RunContext, *, share: bool = False) -> int:
    """Writes evaluation/*.json for each model that is `missing`. Returns how many models this process finished.

    Args:
        share: other processes do the same. Each model is measured by the process that comes first; who finds no more
            such model measures pieces of those that are in progress.
    """
    todo = missing(context)
    drift = partial(_drift_set, context, share=share) if context.config.evaluate.drift else None
    drift_units = context.config.evaluate.drift
    # Answering costs far more than scoring: the bar counts θ0's own answers to the general prompts too.
    total = drift_units + sum(_units(_evaluation(context, subject, mark, drift)) for subject, mark in todo)
    finished = 0
    with context.progress.bar("evaluate", total=max(1, total), unit="example") as bar:
        counter = Counter(bar)
        if drift is not None:  # also of models that are measured already: the report shows it
            with _mine(context, _DRIFT, share=share) as mine:
                if mine:
                    _make_drift_set(context, counter)
                else:  # whoever needs it first waits for it
                    counter(drift_units)
        others = []
        for subject, mark in todo:
            with _mine(context, subject.label, share=share) as mine:
                if mine:
                    counter.note(subject.label)
                    finished += _measure_model(_evaluation(context, subject, mark, drift, counter), share=share)
                else:
                    others.append((subject, mark))
        for subject, mark in others:
            counter.note(subject.label)
            finished += _measure_model(_evaluation(context, subject, mark, drift, counter), share=share)
    if not share:
        shutil.rmtree(context.run.pieces, ignore_errors=True)
    return finished


def _measure_model(evaluation: Evaluation, *, share: bool) -> bool:
    """Measures the pieces that nobody else has measured or has in hand. Returns whether that finished the model.

    Whoever measures the last piece finds all of them. The weights go when this returns, before the next model comes.
    """
    context, label = evaluation.context, evaluation.subject.label
    for piece in evaluation.pieces:
        with _claim(context.run.piece(label, piece.name).with_suffix(".lock"), share=share) as mine:
            if not mine or (share and evaluation.is_measured) or evaluation.kept(piece) is not None:
                evaluation.advance(evaluation.units(piece))
            elif piece.kind == "answers" and picked_engine(context) == "vllm":
                raise StageError(f"vLLM's answers of {label} are gone; run again")
            else:
                evaluation.measure(piece)
    return evaluation.finish()


def _evaluation(
    context: RunContext,
    subject: Subject,
    mark: str,
    drift: Callable[[], DriftSet] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    from merit.models.loading import pick_precision

    precision = pick_precision(context.config.train.precision)
    return Evaluation(context, subject, mark, precision, drift, advance)


def _units(evaluation: Evaluation) -> int:
    return sum(evaluation.units(piece) for piece in evaluation.pieces)


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
    return by_dataset({name: len(part) for name, part in parts.items()}, losses, tokens, exact)


def _settings(context: RunContext) -> str:
    """Fingerprint of what all scores depend on besides the weights."""
    from merit.models.loading import pick_precision

    precision = pick_precision(context.config.train.precision)
    settings = settings_of(context, picked_engine(context))
    return fingerprint(settings, precision, context.data_fingerprints(), context.model.fingerprint)


def settings_of(context: RunContext, engine: str) -> dict[str, Any]:
    """The section `evaluate` as scores depend on it. Runs from before there was a choice have no engine in theirs."""
    settings = context.config.evaluate.model_dump(mode="json", exclude={"engine"})
    return settings | ({"engine": engine} if engine == "vllm" else {})


def _mine(context: RunContext, label: str, *, share: bool, wait: bool = False) -> AbstractContextManager[bool]:
    name = context.run.evaluation(label).with_suffix(".lock").name
    return _claim(context.run.evaluations / "jobs" / name, share=share, wait=wait)


def _claim(lock: Path, *, share: bool, wait: bool = False) -> AbstractContextManager[bool]:
    """Whether this process may do what `lock` stands for."""
    return claim(lock, wait_seconds=math.inf if wait else 0) if share else nullcontext(True)


def _drift_set(context: RunContext, *, share: bool) -> DriftSet:
    """θ0's answers to the general prompts, which another process may be writing just now."""
    with _mine(context, _DRIFT, share=share, wait=True):
        return _make_drift_set(context, lambda _: None)


def _make_drift_set(context: RunContext, advance: Callable[[int], None]) -> DriftSet:
    """The stored answers, or new ones."""
    from merit.data.encode import Encoder
    from merit.models.loading import load_model

    config, settings = context.config.evaluate, _settings(context)
    stored = kept(context.run.drift, DriftSet, {"fingerprint": settings}).record
    if stored is not None:
        advance(config.drift)
        return stored
    made = make_drift_set(
        load_model(context.model.path, trust_remote_code=context.model.trust_remote_code).eval(),
        Encoder(context.tokenizer, context.mixture.max_length),
        config,
        settings,
        advance,
    )
    made.save(context.run.drift)
    return made


def spread(context: RunContext, models: int) -> None:
    """Measures `models` models with as many workers as there are devices; two can share a model.

    On one CPU this is no faster than one process with all cores, but the sums come out the same with every engine.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    run_workers(context, HALVES * models, partial(_job, context, picked_engine(context)))


def run_worker(root: Path, worker: int, precision: str | None = None, engine: str | None = None) -> None:
    """The job of one worker: measures models and pieces until all are measured or in another worker's hands.

    Raises:
        InputError: as `open_as_worker`; no such engine; or the run's models are not merged yet.
    """
    die_with_parent()
    context = _open(root, precision, engine or "hf")
    job = _job(context, picked_engine(context), worker)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"evaluate worker {worker}") as facts:
        facts |= {"models": measure(context, share=True)}
    write_text(job.done, "")


def _job(context: RunContext, engine: GenerationEngine, worker: int) -> Job:
    arguments = ("evaluate", str(context.run.root.resolve()), "--engine", engine)
    return worker_job(context, context.run.evaluations / "jobs", "evaluation", "example", worker, arguments)


def answer(context: RunContext) -> None:
    """Lets vLLM answer for every model that is asked something, if it generates: a job a model.

    Raises:
        InputError, StageError: a job failed for good.
    """
    if picked_engine(context) != "vllm":
        return
    jobs = [_answer_job(context, subject) for subject, mark in missing(context) if _unanswered(context, subject, mark)]
    if jobs:
        from merit.models.loading import free_cached_memory

        free_cached_memory()
        try:
            run_jobs(context, jobs)
        except StageError as error:  # perhaps a model that vLLM does not know
            raise StageError(f"{error}; `evaluate.engine: hf` does without vLLM") from error


def run_answer_job(root: Path, label: str, precision: str | None = None) -> None:
    """The job of one model: vLLM answers, and the answers are scored.

    Raises:
        InputError: as `open_as_worker` and `answers_by_vllm`; or the run has no such model.
    """
    die_with_parent()
    context = _open(root, precision, "vllm")
    found = [(subject, mark) for subject, mark in missing(context) if subject.label == label]
    known = [subject for subject in subjects(context) if subject.label == label]
    if not known:
        raise InputError(f"this run has no model {label!r}", field="--answers")
    job = _answer_job(context, known[0])
    context.progress = FileProgress(job.progress)
    for subject, mark in found:
        evaluation = _evaluation(context, subject, mark)
        if _unanswered(context, subject, mark):
            _answer(evaluation)
    write_text(job.done, "")


def _answer(evaluation: Evaluation) -> None:
    from merit.evaluate.answers import end_tokens
    from merit.models.loading import generation_config_of, positions_of

    context, folder, started = evaluation.context, evaluation.subject.folder, time.monotonic()
    trusted = context.model.trust_remote_code
    prompts = [example.prompt_ids for _, example in evaluation.asked]
    positions = positions_of(context.model)
    longest, most = positions.count if positions else sys.maxsize, context.config.evaluate.max_new_tokens
    with context.progress.bar("evaluate", total=len(prompts), unit="example") as bar:
        answers = answers_by_vllm(
            folder,
            prompts,
            [min(most, longest - len(prompt)) for prompt in prompts],
            end_tokens(generation_config_of(folder, trust_remote_code=trusted), context.tokenizer),
            trust_remote_code=trusted,
        )
        bar.update(len(prompts))
    evaluation.save_answers(answers, time.monotonic() - started)


def _unanswered(context: RunContext, subject: Subject, mark: str) -> bool:
    evaluation = _evaluation(context, subject, mark)
    return any(piece.kind == "answers" and evaluation.kept(piece) is None for piece in evaluation.pieces)


def _answer_job(context: RunContext, subject: Subject) -> Job:
    from merit.models.loading import pick_precision

    folder, name = context.run.evaluations / "jobs", context.run.evaluation(subject.label).stem
    command = merit_command("evaluate", str(context.run.root.resolve()), "--answers", subject.label)
    return Job(
        name=f"answers of {subject.label}",
        command=(*command, "--precision", pick_precision(context.config.train.precision)),
        done=folder / f"answers-{name}.done",
        progress=folder / f"answers-{name}.json",
        output=folder / f"answers-{name}.txt",
        unit="example",
        env=dict(VLLM_ENVIRONMENT),
    )


def _open(root: Path, precision: str | None, engine: str) -> RunContext:
    """As `open_as_worker`, with the engine that the process which distributes the work has picked."""
    if engine not in ("hf", "vllm"):
        raise InputError(f"{engine!r} is neither hf nor vllm", field="--engine")
    context = open_as_worker(root, precision)
    evaluate = context.config.evaluate.model_copy(update={"engine": engine})
    context.config = context.config.model_copy(update={"evaluate": evaluate})
    return context
