"""Stage `evaluate`: θ0, the main method's branches, and every method's merges, on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.base.record import fingerprint
from merit.context import Method, RunContext, Step
from merit.evaluate.effort import effort_apart
from merit.evaluate.measure import answer, measure, missing, settings_of, spread
from merit.evaluate.scores import ModelScores
from merit.evaluate.subjects import round_label, subjects
from merit.evaluate.table import MethodFacts, make_table
from merit.evaluate.vllm_engine import check_engine
from merit.merge.step import MethodMerge, merge_words, merged_branches
from merit.split.partition import Partition
from merit.split.step import describe

NAME = "evaluate"


def depends(context: RunContext) -> dict[str, str]:
    """Every model's weights, the data, and what is measured."""
    return {
        "models": fingerprint([[item.label, item.fingerprint] for item in subjects(context)]),
        "evaluate": fingerprint(settings_of(context, context.config.evaluate.engine), context.config.train.precision),
        "mixture": fingerprint(context.data_fingerprints()),
    }


def files(context: RunContext) -> list[Path]:
    """What must not be damaged."""
    drift = [context.run.drift] if context.config.evaluate.drift else []
    return [context.run.table, *drift, *(context.run.evaluation(subject.label) for subject in subjects(context))]


def run(context: RunContext) -> dict[str, Any]:
    """Writes evaluation/*.json. A model whose scores still hold is not loaded again."""
    check_engine(context, data=True)
    todo = len(missing(context))
    answer(context)
    spread(context, todo)
    measure(context)
    scores = [ModelScores.load(context.run.evaluation(subject.label)) for subject in subjects(context)]
    _write_table(context, scores)
    return {"models": len(scores), "measured": todo}


def _groups(method: Method) -> str:
    return describe(method, len(Partition.load(method.dir.partition).groups))


def _write_table(context: RunContext, scores: list[ModelScores]) -> None:
    facts = {}
    rounds = {round_label(one): one for method in context.trained for one in method.before}
    for name, method in (rounds | {method.name: method for method in context.methods}).items():
        merge = MethodMerge.load(method.dir.merge_record)
        branches = merged_branches(method)
        effort = effort_apart(context, method)
        after = f"after round {method.round} of {method.rounds}" if method.rounds > 1 else ""
        facts[name] = MethodFacts(
            description=", ".join(filter(None, (_groups(method), merge_words(context, method), after))),
            branches=branches,
            left_out=merge.left_out,
            source=method.source or method.name,
            displacement=merge.displacement,
            branch_displacement=merge.branch_displacement,
            bytes_moved=effort.bytes_moved,
            machine_seconds=effort.seconds,
        )
    make_table(scores, facts).save(context.run.table)


STEP = Step(
    NAME,
    run,
    depends,
    says=lambda _: "evaluating θ0, branches and merges on held-out examples",
    outputs=lambda context: [context.run.evaluations],
    files=files,
)
