"""Stage `train`: trains every branch of every method, as jobs of an executor."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError
from merit.base.kept import kept
from merit.base.record import fingerprint
from merit.context import Method, RunContext, Step
from merit.jobs.drive import RetryPolicy
from merit.jobs.engine import engine_named, make_executor, release
from merit.jobs.job import Job
from merit.run.layout import BranchDir, MethodDir, relative
from merit.split.partition import Partition
from merit.split.splitter import find_splitter
from merit.train.carry import drop_state_before
from merit.train.job import branch_job
from merit.train.spec import (
    BranchData,
    BranchResult,
    BranchSpec,
    MeasureSpec,
    damaged_files,
    finished_branch,
    is_measured,
)
from merit.train.staging import Staging

NAME = "train"
_FEW_STEPS = 10  # with fewer, warm-up and schedule mean nothing
_ARRIVALS = 2  # how many times a job may run if its checkpoint arrives damaged
_log = logging.getLogger(__name__)


def depends(context: RunContext) -> dict[str, str]:
    """Partitions, recipe, θ0, data and seed: the content of the branches' specs. And what is measured of the branches,
    if a merge rule asks for it."""
    rounds = [context.start(method).fingerprint for method in context.trained if method.round > 1]
    examples = next((n for method in context.trained if (n := measured_examples(context, method))), None)
    return {
        **({"rounds": fingerprint(rounds)} if rounds else {}),
        "split": fingerprint([Partition.load(method.dir.partition).mark for method in context.trained]),
        "train": fingerprint(context.config.train),
        "model": context.model.fingerprint,
        "mixture": fingerprint(context.data_fingerprints()),
        "seed": fingerprint(context.config.seed),
        **({"measured": fingerprint(examples)} if examples is not None else {}),
    }


def outputs(context: RunContext) -> list[Path]:
    """What a forced rerun makes again."""
    return [method.dir.branches for method in context.trained]


def files(context: RunContext) -> list[Path]:
    """The results, by which the merge weighs. A branch whose result is damaged is trained again."""
    return [path for method in context.trained for path in sorted(method.dir.branches.glob("*/DONE"))]


def run(context: RunContext) -> dict[str, Any]:
    """Trains the branches that are not trained yet. A branch whose spec is unchanged is kept. If a merge rule weighs by
    the inputs of the branches, those that lack a sketch of them are measured.

    Raises:
        InputError: `train.trl` has an argument that TRL does not know, or that merit sets.
        StageError: a branch failed for good, or the run was cancelled. A partial run goes on, unless a method has no
            trained branch.
    """
    if context.config.train.trl:
        from merit.train.trl_arguments import check_trl

        check_trl(context.config.train)
    for method in context.trained:
        _warn_of_few_steps(context, method)
    trained = train_methods(context, context.trained)
    results = [result for method in context.trained for result in branch_results(context, method).values()]
    missing = {method.name: gone for method in context.trained if (gone := left_out(method))}
    return {
        "branches": len(results),
        "trained": trained,
        "supervised_tokens": sum(result.supervised_tokens for result in results),
        **({"incomplete": missing} if missing else {}),
    }


def train_methods(context: RunContext, methods: Sequence[Method]) -> int:
    """Trains the branches of these methods (or of a round of each) that are not trained yet; returns how many.

    Raises:
        StageError: as `run`.
    """
    jobs = []
    for method in methods:
        specs = branch_specs(context, method)
        drop_surplus(method, len(specs))
        drop_surplus_rounds(method)
        for spec in specs:
            branch = method.dir.branch(spec.branch)
            if prepare_branch(branch, spec, measured_examples(context, method)):
                jobs.append((branch, branch_job(context, method, branch, spec)))
    context.run.cancel.unlink(missing_ok=True)
    try:
        run_jobs(context, jobs)
    except (StageError, InputError) as error:
        if context.run.cancel.exists() or any(left_out(method) for method in methods):
            if not _goes_on(context, methods):
                raise
            _log.warning("continuing without the branches that failed or were late: %s", error)
        else:  # the last was done in the moment before the jobs were stopped
            _log.warning("continuing with all branches: they were done when the jobs ended (%s)", error)
    measure_branches(context, methods)
    return len(jobs)


def branch_specs(context: RunContext, method: Method) -> list[BranchSpec]:
    """One spec per group. Branches share the run's seed, except replicas of a soup, which differ in nothing else."""
    mixture, start = context.mixture, context.start(method)
    train = context.config.train.model_copy(update={"rounds": method.rounds, "outer": None})  # the merge's, no branch's
    summaries = {item.name: item for item in mixture.datasets}
    whole = find_splitter(method.splitter).whole_mixture
    specs = []
    for k, group in enumerate(Partition.load(method.dir.partition).groups):
        data = [
            BranchData(
                name=name,
                data=relative(context.run.data(name), context.run.root),
                weight=summaries[name].weight,
                fingerprint=summaries[name].fingerprint,
            )
            for name in group.datasets
        ]
        specs.append(
            BranchSpec(
                method=method.name,
                branch=k,
                model=context.start_config(method),
                model_fingerprint=start.fingerprint,
                train=train,
                round=method.round,
                data=data,
                max_length=mixture.max_length,
                planned_tokens=round(group.tokens * context.config.train.epochs),
                seed=context.config.seed + (k if whole else 0),
            )
        )
    return specs


def branch_results(context: RunContext, method: Method) -> dict[int, BranchResult]:
    """The results of a method's branches, by k, in order. A partial run leaves out unfinished ones.

    Raises:
        InputError: a branch is not finished.
    """
    skip = left_out(method) if context.partial else []
    return {k: BranchResult.load(method.dir.branch(k).done) for k in range(_groups(method)) if k not in skip}


def check_branches(context: RunContext, method: Method, results: dict[int, BranchResult]) -> None:
    """Refuses branches whose files are not as they were trained: their average would mean nothing.

    Raises:
        StageError: a branch is damaged. The next run retrains it, or asks for it if another trainer made it.
    """
    with context.progress.bar("checksums", total=len(results), unit="branch") as bar:
        for done, (k, result) in enumerate(results.items(), 1):
            branch = method.dir.branch(k)
            if damaged := damaged_files(branch):
                name = method.source or method.name
                what = f"{branch.root / damaged[0]}: changed since {name} branch {k} was trained; "
                if result.adopted:
                    raise StageError(f"{what}adopt it again with `merit adopt --redo`")
                branch.done.unlink()
                raise StageError(f"{what}run again to retrain the branch")
            bar.update(done)


def left_out(method: Method) -> list[int]:
    """The branches of a method that are not trained."""
    return [k for k in range(_groups(method)) if not method.dir.branch(k).done.is_file()]


def prepare_branch(branch: BranchDir, spec: BranchSpec, examples: int | None = None) -> bool:
    """Writes the spec; False if the branch is already trained. Removes what a different training left behind.

    Args:
        examples: training examples on which the job is to measure the branch's inputs; None: it measures nothing.
    """
    known = kept(branch.spec, BranchSpec).record
    if known is None or not known.same_training(spec):
        release(branch.job)
        shutil.rmtree(branch.root, ignore_errors=True)
    else:
        stale = branch.done.exists()  # asked first, because a job in a queue may finish at any moment
        if finished_branch(branch, fingerprint(known)) is not None:
            drop_state_before(branch, known)  # its job may have been killed before it did
            return False
        if stale:
            branch.done.unlink(missing_ok=True)
    spec.save(branch.spec)
    ask_for(branch, examples)
    return True


def ask_for(branch: BranchDir, examples: int | None) -> None:
    """Says on how many examples the branch's job is to measure its layers' inputs; None: not at all."""
    if examples is None:
        branch.measure.unlink(missing_ok=True)
    else:
        MeasureSpec(examples=examples).save(branch.measure)


def measure_branches(context: RunContext, methods: Sequence[Method]) -> int:
    """Measures the finished branches that lack the sketch which a merge rule wants: they were trained before it was
    asked for, or by another trainer. Returns how many.

    Where a store is used, this machine measures them: it has the checkpoints and the data.

    Raises:
        InputError, StageError: a job failed.
    """
    launch = context.config.launch
    here = launch.model_copy(update={"engine": "local", "store": None} if launch.store is not None else {})
    jobs = []
    for method in methods:
        examples = measured_examples(context, method)
        for k in range(_groups(method)):
            branch = method.dir.branch(k)
            if not branch.done.is_file():
                continue
            spec = BranchSpec.load(branch.spec)
            if not is_measured(branch, fingerprint(spec), examples):
                ask_for(branch, examples)
                branch.measured.unlink(missing_ok=True)
                job = branch_job(context, method, branch, spec, launch=here)
                jobs.append(replace(job, name=f"inputs of {job.name}", done=branch.measured))
    if jobs:
        _log.info("measuring the inputs of %d trained branches, which a merge rule weighs by", len(jobs))
        policy = RetryPolicy(
            retries=here.retries, preemption_retries=here.preemption_retries, stop=lambda: _cancelled(context)
        )
        make_executor(here, policy, context.run.engine).run(jobs, context.progress)
    return len(jobs)


def run_jobs(context: RunContext, jobs: Sequence[tuple[BranchDir, Job]]) -> None:
    """Runs the jobs. Checkpoints from other machines are verified here; a damaged one is trained again."""
    launch = context.config.launch
    here = engine_named(launch.engine).on_this_machine
    # No job of this machine outlives its run, so there is none to stop: after the deadline nothing begins.
    if jobs and here and (reason := _why_stop(context)) is not None:
        raise StageError(reason)
    staging = Staging(context) if launch.store is not None and jobs else None
    folders = {job.name: branch for branch, job in jobs}
    if staging is not None:
        jobs = [(branch, job) for branch, job in jobs if not staging.fetch(branch)]
        staging.send([branch for branch, _ in jobs])
    policy = RetryPolicy(
        retries=launch.retries,
        preemption_retries=launch.preemption_retries,
        checkpoint_seconds=context.config.train.checkpoint_minutes * 60,
        stop=lambda: _why_stop(context),
        look=staging.look if staging is not None else lambda _: None,
        fetch=lambda job: staging is not None and staging.fetch(folders[job.name]),
    )
    todo = list(jobs)
    for _ in range(_ARRIVALS):
        make_executor(launch, policy, context.run.engine).run([job for _, job in todo], context.progress)
        if here:
            return
        todo = [(branch, job) for branch, job in todo if _arrived_damaged(branch, job)]
        if not todo:
            return
    raise StageError(f"{todo[0][1].name}: its checkpoint arrived damaged {_ARRIVALS} times; see {todo[0][0].root}")


def _arrived_damaged(branch: BranchDir, job: Job) -> bool:
    damaged = damaged_files(branch)
    if damaged:
        _log.warning("%s: %s arrived damaged; merit trains it again", job.name, ", ".join(damaged))
        branch.done.unlink(missing_ok=True)
        shutil.rmtree(branch.checkpoint, ignore_errors=True)
    return bool(damaged)


def _cancelled(context: RunContext) -> str | None:
    return "cancelled; run again to resume" if context.run.cancel.exists() else None


def _why_stop(context: RunContext) -> str | None:
    if (reason := _cancelled(context)) is not None:
        return reason
    if context.deadline is not None and time.time() > context.deadline:
        return "the deadline has passed"
    return None


def _goes_on(context: RunContext, methods: Sequence[Method]) -> bool:
    """Whether this is a partial run and every method has a branch to merge."""
    enough = all(len(left_out(method)) < _groups(method) for method in methods)
    return context.partial and enough and not context.run.cancel.exists()


def _warn_of_few_steps(context: RunContext, method: Method) -> None:
    tokens = {item.name: item.train.tokens * item.weight for item in context.mixture.datasets}
    train = context.config.train
    for k, group in enumerate(Partition.load(method.dir.partition).groups):
        total = sum(tokens[name] for name in group.datasets) * train.epochs
        steps = max(1, round(total / train.batch_tokens))
        if steps < _FEW_STEPS * method.rounds:
            _log.warning(
                "%s branch %d trains for only about %d optimizer steps; lower `train.batch_tokens` (%s) for more",
                method.name,
                k,
                steps,
                f"{train.batch_tokens:,}",
            )


def measured_examples(context: RunContext, method: Method) -> int | None:
    """As `MeasureSpec.examples`. A single branch is its own merge, whatever the rule."""
    if _groups(method) < 2:
        return None
    shared = [other for other in context.methods if other.source == method.name and method.round == method.rounds]
    wanted = [context.merging(one).measured_examples for one in (method, *shared)]
    return next((examples for examples in wanted if examples is not None), None)


def _groups(method: Method) -> int:
    return len(Partition.load(method.dir.partition).groups)


def drop_surplus(method: Method, count: int) -> None:
    """Removes branches of an earlier, larger partition."""
    keep = {method.dir.branch(k).root for k in range(count)}
    for folder in method.dir.branches.glob("*"):
        if folder not in keep:
            release(BranchDir(folder).job)
            shutil.rmtree(folder, ignore_errors=True)


def drop_surplus_rounds(method: Method) -> None:
    """Removes rounds of an earlier configuration, which had more of them."""
    rounds = MethodDir(method.dir.whole or method.dir.source).rounds
    for folder in rounds.glob("[0-9][0-9]"):
        if int(folder.name) >= method.rounds:
            for branch in MethodDir(folder).branches.glob("*"):
                release(BranchDir(branch).job)
            shutil.rmtree(folder, ignore_errors=True)


def _says(context: RunContext) -> str:
    return f"training the branches of {', '.join(method.name for method in context.trained)}"


STEP = Step(NAME, run, depends, says=_says, outputs=outputs, files=files)
