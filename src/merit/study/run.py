"""`merit study`: θ0, then a job for each seed and budget on the executor. Resumes; skips what is done."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import sweep_parts
from merit.base.kept import kept
from merit.base.machine import merit_command
from merit.base.progress import SILENT, Progress
from merit.base.record import Record, fingerprint
from merit.config.run import BaselineConfig
from merit.context import Method
from merit.jobs.drive import RetryPolicy
from merit.jobs.engine import make_executor
from merit.jobs.job import Job as LaunchedJob
from merit.jobs.process import die_with_parent, job_lock
from merit.run.events import stage_events
from merit.run.guard import run_lock
from merit.run.layout import BranchDir
from merit.study.measure import Summary
from merit.study.spec import Study, job_mark


def run_study(
    study: Study,
    progress: Progress = SILENT,
    *,
    seeds: Collection[int] | None = None,
    budgets: Collection[str] | None = None,
    scores: Path | None = None,
) -> bool:
    """Runs what is missing of the study, or of some `seeds` and `budgets`; returns whether the whole study is finished.

    Args:
        scores: a folder of scores of the same study (`merit.study.scores`), which are not measured again.

    Raises:
        InputError: bad input, or another process works on the study.
        StageError: a job failed; a rerun resumes.
    """
    from merit.study.scores import adopt_scores, tell_measured_again

    for name in budgets or ():
        if name not in study.config.budgets:
            raise InputError(f"no budget {name!r}; there are {', '.join(study.config.budgets)}", field="--budget")
    for seed in seeds or ():
        if seed not in study.config.seeds:
            raise InputError(f"no seed {seed}; there are {', '.join(map(str, study.config.seeds))}", field="--seed")
    with run_lock(study.dir.run):
        for folder in (study.dir.root / "points", study.dir.run.baselines):
            if folder.is_dir():
                sweep_parts(folder)
        study.save()
        launch = study.launch
        policy = RetryPolicy(retries=launch.retries, preemption_retries=launch.preemption_retries)
        executor = make_executor(launch, policy, study.dir.run.engine)
        if study.config.warmup is not None:
            executor.run([_warm_up(study)], progress)
        used = adopt_scores(study, scores, progress, seeds=seeds) if scores is not None else {}
        wanted = [
            (seed, budget)
            for seed in study.config.seeds
            for budget in study.config.budgets
            if (seeds is None or seed in seeds) and (budgets is None or budget in budgets)
        ]
        jobs = {(s, b): _launched(study, s, b) for s, b in wanted if summary(study, s, b) is None}
        if study.trains_apart:
            for (seed, budget), job in jobs.items():
                train_cells(study, seed, budget, progress)
                executor.run([job], progress)
        else:
            executor.run([*jobs.values()], progress)
        tell_measured_again(study, used)
    return all(summary(study, s, b) is not None for s in study.config.seeds for b in study.config.budgets)


def train_cells(study: Study, seed: int, budget: str, progress: Progress = SILENT) -> None:
    """Trains the cells of one seed and budget as branch jobs, as `merit run` trains branches.

    Each has the processes, the engine and the store that `launch` names. Cells of measured methods are left out.

    Raises:
        InputError, StageError: as `merit.train.step.run_jobs`.
    """
    from merit.study.cells import Planned, RoundsCell, cell_mark
    from merit.study.job import SeedData, available_methods
    from merit.train.job import branch_job
    from merit.train.step import prepare_branch, run_jobs

    known = summary_so_far(study, seed, budget)
    data = SeedData(study, seed, progress)
    todo = [method for name, method in available_methods(study).items() if known is None or name not in known.methods]
    plans = [(method, data.specs(method, study.config.budgets[budget])) for method in todo]
    cells = {cell_mark(spec): spec for method, specs in plans if method.rounds == 1 for spec in specs}
    context = study.cell_run(progress)
    jobs = []
    for mark, spec in cells.items():
        branch = study.dir.cell(mark)
        if prepare_branch(branch, spec):
            cell = Method(mark, study.dir.run.method(mark), BaselineConfig(splitter="single"))
            jobs.append((branch, branch_job(context, cell, branch, spec)))
    run_jobs(context, jobs)

    def train(round_of: Sequence[Planned]) -> None:
        run_jobs(context, [(item.dir, branch_job(context, item.method, item.dir, item.spec)) for item in round_of])

    for method, specs in plans:
        if method.rounds > 1:
            RoundsCell.of(context, method, data.partition(method), specs).train(train)


def summary(study: Study, seed: int, budget: str) -> Summary | None:
    """The results of a finished job, if the study still asks for the same."""
    return _load_summary(study, study.dir.summary(seed, budget))


def summary_so_far(study: Study, seed: int, budget: str) -> Summary | None:
    """The results of a job that may be unfinished, with the methods that it has measured."""
    return summary(study, seed, budget) or _load_summary(study, study.dir.so_far(seed, budget))


def is_whole(study: Study, found: Summary) -> bool:
    """Whether every method is measured, or could not run, and the question is answered."""
    answered = study.dir.question(found.seed).is_file() or not asks(study, found.seed, found.budget)
    return answered and {*study.config.methods} <= {*found.methods, *found.skipped}


def _load_summary(study: Study, path: Path) -> Summary | None:
    return kept(path, Summary, {"mark": job_mark(study)}).record


def run_init(root: Path) -> None:
    """The job that makes θ0, before all others.

    Raises:
        InputError: a dataset cannot be read.
        StageError: another process is making it.
    """
    die_with_parent()
    study = Study.open(root)
    from merit.study.warmup import make_init

    with job_lock(study.dir.init / "lock"), stage_events(study.dir.run.events, "init"):
        make_init(study)
        InitRecord(mark=init_mark(study)).save(study.dir.init_done)


class InitRecord(Record):
    """`init/init.json`: the settings that θ0 is the result of; written last."""

    mark: str


def init_mark(study: Study) -> str:
    """What θ0 depends on. Fields at their default are left out, as in `job_mark`."""
    parts = {"model", "warmup", "mixture", "retention"}
    return fingerprint(study.config.model_dump(mode="json", include=parts, exclude_defaults=True))


def run_job(root: Path, seed: int, budget: str) -> Summary:
    """The work of one job. An executor starts it on any machine that sees the study's directory.

    Raises:
        InputError: no study there, or no such seed or budget in it.
        StageError: another process works on this job.
    """
    die_with_parent()
    study = Study.open(root)
    if seed not in study.config.seeds or budget not in study.config.budgets:
        raise InputError(f"no seed {seed} or no budget {budget!r} in this study", file=study.dir.config)
    from merit.study.job import Job
    from merit.study.question import ask

    folder = study.dir.job(seed, budget)
    with job_lock(folder / "lock"), stage_events(study.dir.run.events, f"study {seed} {budget}") as facts:
        job = Job(study, seed, budget)
        if asks(study, seed, budget):
            ask(job)
        found = job.run()
        facts |= {"methods": len(found.methods)}
    return found


def asks(study: Study, seed: int, budget: str) -> bool:
    """Whether this job also answers the question about conflict and harm."""
    question = study.config.question
    if question is None:
        return False
    largest = max(study.config.budgets, key=lambda name: study.config.budgets[name])
    count = question.seeds or len(study.config.seeds)
    return budget == (question.budget or largest) and seed in study.config.seeds[:count]


def _warm_up(study: Study) -> LaunchedJob:
    done = study.dir.init_done
    if not kept(done, InitRecord, {"mark": init_mark(study)}).fresh:
        done.unlink(missing_ok=True)
    return LaunchedJob(
        name="warm-up",
        command=tuple(merit_command("study", str(study.dir.root), "--job", "init")),
        done=done,
        progress=BranchDir(study.dir.init / "branch").progress,
        output=study.dir.init / "output.txt",
    )


def _launched(study: Study, seed: int, budget: str) -> LaunchedJob:
    folder = study.dir.job(seed, budget)
    study.dir.summary(seed, budget).unlink(missing_ok=True)  # of another configuration
    command = tuple(merit_command("study", str(study.dir.root), "--job", f"{seed}:{budget}"))
    return LaunchedJob(
        name=f"seed {seed}, budget {budget}",
        command=command,
        done=study.dir.summary(seed, budget),
        progress=folder / "progress.json",
        output=folder / "output.txt",
        unit="tok",
        # Largest budget first, seed by seed: a study that is cut short holds one budget's table with all its seeds.
        weight=len(study.config.seeds) * study.config.budgets[budget] * 1000 - study.config.seeds.index(seed),
    )
