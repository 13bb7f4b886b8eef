"""`merit add` and `merit remove`: change the mixture of a finished run, and retrain one branch instead of all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import read_json, write_bytes, write_text
from merit.config import RunConfig
from merit.config.run import dump_config
from merit.config.sections import DatasetConfig
from merit.config.yaml import load_config
from merit.context import RunContext
from merit.run.guard import run_lock
from merit.run.layout import MAIN_METHOD, MethodDir, RunDir
from merit.train.spec import BranchResult


@dataclass(frozen=True)
class Cost:
    """What a change cost. Tokens are the supervised tokens that were trained on."""

    branches: list[int]  # retrained
    tokens: int  # of the retrained branches
    all_tokens: int  # of all branches, which a new run would train on
    dropped: list[str]  # baselines that are not trained on the new mixture


def add_dataset(
    context: RunContext, name: str, dataset: DatasetConfig, run: Callable[[RunContext], None], *, baselines: bool
) -> Cost:
    """Adds a dataset to the run's mixture, and runs the pipeline again.

    Args:
        run: the pipeline.
        baselines: retrain the configured baselines on the new mixture; otherwise those that train are dropped.

    Raises:
        InputError: the name is taken, the data is bad, or the run has no split yet. The run stays as it was.
    """
    if name in context.config.mixture or name in context.config.evaluate.unseen:
        raise InputError(f"this run has a dataset {name!r} already", field="NAME")
    return _change(context, {**context.config.mixture, name: dataset}, run, baselines=baselines)


def remove_dataset(context: RunContext, name: str, run: Callable[[RunContext], None], *, baselines: bool) -> Cost:
    """Removes a dataset from the run's mixture, and runs the pipeline again; otherwise as `add_dataset`."""
    if name not in context.config.mixture:
        raise InputError(f"this run has no dataset {name!r}; it has {', '.join(context.config.mixture)}", field="NAME")
    rest = {key: item for key, item in context.config.mixture.items() if key != name}
    return _change(context, rest, run, baselines=baselines)


def _change(
    context: RunContext, mixture: dict[str, DatasetConfig], run: Callable[[RunContext], None], *, baselines: bool
) -> Cost:
    method = context.run.method()
    if context.methods[0].rounds > 1:
        said = "in rounds every branch depends on all others, so none can be kept; change `mixture` in a new run"
        raise InputError(said, field="train.rounds")
    if not method.partition.is_file():
        raise InputError("this run is not split yet; `merit run` first", file=context.run.root)
    kept = {
        name: item
        for name, item in context.config.baselines.items()
        if baselines or context.config.trained_by(name) == MAIN_METHOD
    }
    dropped = sorted(set(context.config.baselines) - set(kept))
    config = context.config.model_copy(
        update={
            "mixture": mixture,
            "split": context.config.split.model_copy(update={"keep": True}),
            "baselines": kept,
        }
    )
    before = context.run.config.read_bytes()
    old = _results(method)
    with run_lock(context.run):
        _keep(context.run, method, first=not context.config.split.keep)
        write_text(context.run.config, dump_config(config, context.base))
    try:
        changed: RunConfig = load_config(context.run.config)
        run(RunContext(changed, context.base, context.run, context.progress))
    except InputError:
        if set(_read_names(context)) != set(mixture):  # the new data was refused
            write_bytes(context.run.config, before)
        raise
    new = _results(method)
    branches = [k for k, result in new.items() if old.get(k) is None or old[k].fingerprint != result.fingerprint]
    for name in dropped:
        shutil.rmtree(context.run.method(name).root, ignore_errors=True)
    return Cost(
        branches=branches,
        tokens=sum(new[k].supervised_tokens for k in branches),
        all_tokens=sum(result.supervised_tokens for result in new.values()),
        dropped=dropped,
    )


def _keep(run: RunDir, method: MethodDir, *, first: bool) -> None:
    """Keeps today's partition, and the axes of the first split."""
    method.kept_partition.parent.mkdir(parents=True, exist_ok=True)
    if first and run.axes.is_file():
        write_bytes(method.kept_axes, run.axes.read_bytes())
    write_bytes(method.kept_partition, method.partition.read_bytes())


def _results(method: MethodDir) -> dict[int, BranchResult]:
    found = {}
    for path in sorted(method.branches.glob("*/DONE")):
        found[int(path.parent.name)] = BranchResult.load(path)
    return found


def _read_names(context: RunContext) -> list[str]:
    path: Path = context.run.mixture
    return [item["name"] for item in read_json(path)["datasets"]] if path.is_file() else []
