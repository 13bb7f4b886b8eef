"""Stage `evaluate`: θ0, the main method's branches, and every method's merges, on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.errors import InputError
from merit.evaluation.drift_set import DriftSet
from merit.evaluation.scores import ModelScores
from merit.evaluation.subject import Subject, stored_scores, work_units
from merit.evaluation.table import MethodFacts, make_table
from merit.models.source import weights_fingerprint
from merit.progress import Bar
from merit.run.fingerprint import fingerprint
from merit.run.layout import MAIN_METHOD
from merit.split.partition import Partition
from merit.stages.context import RunContext
from merit.stages.merge import MethodMerge, merged_branches
from merit.stages.split import describe

NAME = "evaluate"
BASE = "base"


def depends(context: RunContext) -> dict[str, str]:
    """Every model's weights, the data, and what is measured."""
    return {
        "models": fingerprint([[item.label, item.fingerprint] for item in subjects(context)]),
        "evaluate": fingerprint(context.config.evaluate, context.config.train.precision),
        "mixture": fingerprint(context.data_fingerprints()),
    }


def outputs(context: RunContext) -> list[Path]:
    """What a forced rerun makes anew."""
    return [context.run.evaluations]


def files(context: RunContext) -> list[Path]:
    """What must not be damaged."""
    return [context.run.table, *(context.run.evaluation(subject.label) for subject in subjects(context))]


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


def run(context: RunContext) -> dict[str, Any]:
    """Writes evaluation/*.json; a model whose figures are there and still hold is not loaded again."""
    from merit.evaluation.evaluate import evaluate_model
    from merit.models.loading import load_model, pick_precision

    config = context.config.evaluate
    mixture = context.mixture
    precision = pick_precision(context.config.train.precision)
    settings = fingerprint(config, precision, context.data_fingerprints(), context.model.fingerprint)
    todo = []
    scores: list[ModelScores] = []
    for subject in subjects(context):
        mark = fingerprint(settings, subject.fingerprint, subject.kind)
        known = stored_scores(context.run, subject, mark)
        if known is not None:
            scores.append(known)
        else:
            todo.append((subject, mark))
    # Answering costs far more than scoring: the bar counts θ0's own answers to the general prompts too.
    units = config.drift + sum(work_units(mixture, config, subject.kind) for subject, _ in todo)
    with context.progress.bar("evaluate", total=max(1, units), unit="example") as bar:
        counter = _Counter(bar)
        drift = drift_set(context, settings, counter) if config.drift and todo else None
        for subject, mark in todo:
            bar.update(counter.done, note=subject.label)
            model = load_model(subject.folder, trust_remote_code=context.model.trust_remote_code)
            scores.append(
                evaluate_model(
                    context.run,
                    subject,
                    model.eval(),
                    context.tokenizer,
                    mixture,
                    config,
                    drift,
                    precision=precision,
                    fingerprint=mark,
                    advance=counter,
                )
            )
    _write_table(context, scores)
    return {"models": len(scores), "measured": len(todo)}


def drift_set(context: RunContext, settings: str, counter: _Counter) -> DriftSet:
    """θ0's answers to the general prompts: those stored, or fresh ones."""
    from merit.data.encode import Encoder
    from merit.evaluation.drift import general_prompts, make_drift_set
    from merit.models.loading import load_model

    config = context.config.evaluate
    try:
        stored = DriftSet.load(context.run.drift)
        if stored.fingerprint == settings:
            counter(config.drift)
            return stored
    except InputError:
        pass
    made = make_drift_set(
        load_model(context.model.path, trust_remote_code=context.model.trust_remote_code).eval(),
        context.tokenizer,
        Encoder(context.tokenizer, context.mixture.max_length),
        prompts=general_prompts(config.drift),
        max_new_tokens=config.max_new_tokens,
        fingerprint=settings,
        advance=counter,
    )
    made.save(context.run.drift)
    return made


class _Counter:
    """Adds up finished examples and shows the sum."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.done = 0

    def __call__(self, examples: int) -> None:
        self.done += examples
        self.bar.update(self.done)


def _write_table(context: RunContext, scores: list[ModelScores]) -> None:
    order = {item.label: index for index, item in enumerate(subjects(context))}
    facts = {}
    for method in context.methods:
        merge = MethodMerge.load(method.dir.merge_record)
        facts[method.name] = MethodFacts(
            description=describe(method, len(Partition.load(method.dir.partition).groups)),
            branches=merged_branches(method),
            left_out=merge.left_out,
            displacement=merge.displacement,
            branch_displacement=merge.branch_displacement,
        )
    make_table(sorted(scores, key=lambda item: order[item.label]), facts).save(context.run.table)
