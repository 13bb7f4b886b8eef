"""Stage `evaluate`: θ0, the main method's branches, and every method's merges, on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.base.record import fingerprint
from merit.context import Method, RunContext, Step
from merit.evaluate.measure import measure, missing, round_label, spread, subjects
from merit.evaluate.scores import ModelScores
from merit.evaluate.table import MethodFacts, make_table
from merit.merge.step import MethodMerge, merge_words, merged_branches
from merit.merge.traffic import data_parallel, moved
from merit.split.partition import Partition
from merit.split.step import describe
from merit.train.spec import BranchResult

NAME = "evaluate"


def depends(context: RunContext) -> dict[str, str]:
    """Every model's weights, the data, and what is measured."""
    return {
        "models": fingerprint([[item.label, item.fingerprint] for item in subjects(context)]),
        "evaluate": fingerprint(context.config.evaluate, context.config.train.precision),
        "mixture": fingerprint(context.data_fingerprints()),
    }


def files(context: RunContext) -> list[Path]:
    """What must not be damaged."""
    drift = [context.run.drift] if context.config.evaluate.drift else []
    return [context.run.table, *drift, *(context.run.evaluation(subject.label) for subject in subjects(context))]


def run(context: RunContext) -> dict[str, Any]:
    """Writes evaluation/*.json. A model whose scores still hold is not loaded again."""
    todo = len(missing(context))
    spread(context, todo)
    measure(context)
    scores = [ModelScores.load(context.run.evaluation(subject.label)) for subject in subjects(context)]
    _write_table(context, scores)
    return {"models": len(scores), "measured": todo}


def _groups(method: Method) -> str:
    return describe(method, len(Partition.load(method.dir.partition).groups))


def _write_table(context: RunContext, scores: list[ModelScores]) -> None:
    facts = {}
    machines = len(merged_branches(context.methods[0]))
    rounds = {round_label(one): one for method in context.trained for one in method.before}
    for name, method in (rounds | {method.name: method for method in context.methods}).items():
        merge = MethodMerge.load(method.dir.merge_record)
        branches = merged_branches(method)
        bytes_moved, machine_seconds = _apart(method, branches, machines)
        after = f"after round {method.round} of {method.rounds}" if method.rounds > 1 else ""
        facts[name] = MethodFacts(
            description=", ".join(filter(None, (_groups(method), merge_words(context, method), after))),
            branches=branches,
            left_out=merge.left_out,
            source=method.source or method.name,
            displacement=merge.displacement,
            branch_displacement=merge.branch_displacement,
            bytes_moved=bytes_moved,
            machine_seconds=machine_seconds,
        )
    make_table(scores, facts).save(context.run.table)


def _apart(method: Method, branches: Mapping[int, BranchResult], machines: int) -> tuple[int | None, float | None]:
    """The bytes that a method moves and the seconds that it trains, with a machine a branch.

    Joint training runs data-parallel on `machines`, which exchange fp32 gradients in every step and share the work
    without loss: it takes longer than this.
    """
    seconds = [result.seconds for result in branches.values()]
    folders = [method.dir.branch(k).checkpoint for k in branches]
    size = max(sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in folders)
    if not size or not all(seconds):  # its weights are elsewhere; another trainer made them
        return None, None
    if (
        len(Partition.load(method.dir.partition).groups) == 1
    ):  # joint training; a lone branch of a partial merge is none
        steps = sum(result.steps for result in branches.values())
        return data_parallel(machines, steps, size), seconds[0] / machines
    return moved(len(branches), method.round, size), max(seconds)


STEP = Step(
    NAME,
    run,
    depends,
    says=lambda _: "evaluating θ0, branches and merges on held-out examples",
    outputs=lambda context: [context.run.evaluations],
    files=files,
)
