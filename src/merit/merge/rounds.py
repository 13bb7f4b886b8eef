"""Stage `rounds`: with `train.rounds` above one, all rounds but the last. Each trains every branch on the next part of
its data, and merges them by the run's own rule; the branches of the next round go on from that merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.record import fingerprint
from merit.base.words import plural
from merit.config.sections import TrainConfig
from merit.context import Method, RunContext, Step
from merit.data.mixture import DatasetSummary
from merit.merge.step import files_of_merges, merge_methods
from merit.split.partition import Partition
from merit.split.splitter import find_splitter
from merit.train.carry import too_few_steps
from merit.train.step import train_methods

NAME = "rounds"


def wanted(context: RunContext) -> bool:
    """Whether a method has more than one round."""
    return any(method.rounds > 1 for method in context.trained)


def depends(context: RunContext) -> dict[str, str]:
    """What training depends on, and how its merges are made."""
    config, methods = context.config, _methods(context, 1)
    own = [context.merging(method).mark for method in methods if method.config.merge is not None]
    return {
        "split": fingerprint([Partition.load(method.dir.partition).mark for method in methods]),
        "train": fingerprint(config.train, [method.rounds for method in context.trained]),
        "merge": fingerprint(config.merge.mark, *own),
        "model": context.model.fingerprint,
        "mixture": fingerprint(context.data_fingerprints()),
        "seed": fingerprint(config.seed),
    }


def outputs(context: RunContext) -> list[Path]:
    """What a forced rerun makes anew."""
    return [method.dir.rounds for method in context.trained if method.rounds > 1]


def files(context: RunContext) -> list[Path]:
    """What must not be damaged: the merges, from which later rounds start."""
    return [file for number in _numbers(context) for file in files_of_merges(_methods(context, number))]


def check(context: RunContext, datasets: Sequence[DatasetSummary]) -> None:
    """Refuses more rounds than the data has room for. It needs no split, and so comes before the conflict is measured.

    Raises:
        InputError: a dataset has fewer training examples than there are rounds; or however the mixture is cut, a branch
            has fewer optimizer steps.
    """
    for item in datasets:
        rounds = _numbers(context).stop
        if (examples := round(item.train.examples * item.weight)) < rounds:
            said = f"{rounds}, but `{item.name}` has only {plural(examples, 'training example')}"
            raise InputError(said, field="train.rounds")
    for method in _methods(context, 1) if datasets else ():
        axes, splitter = method.config.axes, find_splitter(method.splitter)
        known = not splitter.whole_mixture and not splitter.needs_file
        branches = 2**axes if isinstance(axes, int) and known else 1
        most = steps_of(datasets, context.config.train) // branches + 1  # of the smallest branch; each rounds up
        if most < method.rounds:
            said = f"a branch of {method.name} has at most {plural(most, 'optimizer step')}"
            raise too_few_steps(method.rounds, said)


def _check_groups(context: RunContext, method: Method) -> None:
    summaries = {item.name: item for item in context.mixture.datasets}
    for k, group in enumerate(Partition.load(method.dir.partition).groups):
        steps = steps_of([summaries[name] for name in group.datasets], context.config.train)
        if steps < method.rounds:
            said = f"{method.name} branch {k} has only about {plural(steps, 'optimizer step')}"
            raise too_few_steps(method.rounds, said)


def steps_of(datasets: Sequence[DatasetSummary], train: TrainConfig) -> int:
    """Optimizer steps of a branch on these datasets, as its trainer will count them from their mean length."""
    from merit.train.rows import plan_batching

    examples = max(1, sum(round(item.train.examples * item.weight) for item in datasets))
    mean, longer = divmod(round(sum(item.train.tokens * item.weight for item in datasets)), examples)
    lengths = [max(1, mean)] * (examples - longer) + [mean + 1] * longer
    return plan_batching(lengths, train.batch_tokens, train.micro_batch_tokens).steps(examples, train.epochs)


def run(context: RunContext) -> dict[str, Any]:
    """Trains and merges round after round.

    Raises:
        InputError: as `check`; or a branch has fewer optimizer steps than there are rounds.
        StageError: a branch failed for good, or the run was cancelled.
    """
    check(context, context.mixture.datasets)
    for method in _methods(context, 1):
        _check_groups(context, method)
    trained = run_rounds(context, context.trained, lambda methods: train_methods(context, methods))
    return {"rounds": len(_numbers(context)), "trained": trained}


def run_rounds(context: RunContext, methods: Sequence[Method], train: Callable[[Sequence[Method]], int]) -> int:
    """Trains and merges all rounds but the last of these methods; returns the number of branches trained.

    Args:
        train: trains what is missing of one round of each method, and returns how many branches that was.
    """
    trained = 0
    for number in range(1, max(method.rounds for method in methods)):
        now = [method.before[number - 1] for method in methods if number < method.rounds]
        trained += train(now)
        merge_methods(context, now)
    return trained


def _numbers(context: RunContext) -> range:
    return range(1, max(method.rounds for method in context.trained))


def _methods(context: RunContext, number: int) -> list[Method]:
    return [method.before[number - 1] for method in context.trained if number < method.rounds]


def _says(context: RunContext) -> str:
    rounds = max(method.rounds for method in context.trained)
    before = "1" if rounds == 2 else f"1 to {rounds - 1}"
    return f"training and merging, round {before} of {rounds}"


STEP = Step(NAME, run, depends, says=_says, outputs=outputs, files=files, wanted=wanted)
