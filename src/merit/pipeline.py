"""The order of the steps, and which of them are up to date. Nothing else knows either."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from merit.base.errors import InputError
from merit.base.files import sweep_parts, write_text
from merit.base.kept import Files, Kept, keep, kept
from merit.base.machine import busy_elsewhere, usable_cores, visible_gpus
from merit.base.record import Record
from merit.base.words import series
from merit.config.changes import changed_settings
from merit.config.run import dump_config
from merit.conflict import step as conflict
from merit.context import RunContext, Step
from merit.data import step as mixture
from merit.diagnose import step as diagnose
from merit.evaluate import step as evaluate
from merit.gate import step as gate
from merit.jobs.engine import engine_named
from merit.merge import rounds
from merit.merge import step as merge
from merit.plan.preflight import preflight
from merit.report import step as report
from merit.run.events import stage_events
from merit.run.guard import Before, run_lock
from merit.run.layout import JOB, RunDir
from merit.split import step as split
from merit.track import step as track
from merit.train import prepare
from merit.train import step as train

_log = logging.getLogger(__name__)
STEPS = (
    prepare.STEP,
    mixture.STEP,
    conflict.STEP,
    split.STEP,
    gate.STEP,
    rounds.STEP,
    train.STEP,
    merge.STEP,
    evaluate.STEP,
    diagnose.STEP,
    report.STEP,
    track.STEP,
)
STAGE_NAMES = tuple(step.name for step in STEPS)
_CHANGES = 5  # changed settings that are named
_TOWARDS_TRAINING = STAGE_NAMES[: STAGE_NAMES.index(train.NAME) + 1]
_FIRST = (prepare.NAME, mixture.NAME)  # they read the data; if it is bad, the run directory stays as it was


def run_pipeline(context: RunContext, *, start: str | None = None, until: str | None = None) -> None:
    """Runs the stages whose result is missing or out of date.

    Args:
        context: the run.
        start: redo from this stage on, whatever the fingerprints say.
        until: the last stage to run. The report is made in any case, from what there is.

    Raises:
        InputError: bad input, an unknown stage, or another process works on the run.
        StageError: a stage failed; a rerun resumes.
    """
    first = _index(start, "--from") if start is not None else len(STEPS)
    last = _index(until, "--until") if until is not None else len(STEPS) - 1
    if first > last and start is not None:
        raise InputError(f"the stage `{start}` comes after `{until}`", field="--from")
    preflight(context)
    context.settle_freeze()
    run = context.run
    before = Before.of(run, run.config, run.mixture, run.stage(mixture.NAME))
    with run_lock(run):
        _sweep(context)
        context.redo = frozenset(STAGE_NAMES[first:])
        stages = [step for i, step in enumerate(STEPS) if i <= last or step.depends is None]
        changes = changed_settings(run.config, context.config)
        trains = train.STEP in stages
        with before.restored_on_bad_input():
            write_text(run.config, dump_config(context.config, context.base))
            seen = _look_ahead(context, stages)
            _tell_plan(context, seen, changes)
            if not all(state.fresh for _, state in seen.values()) or context.redo:
                _tell_company(context)
            for stage in stages:
                if stage.name in _FIRST and stage.wanted(context):
                    _run_stage(context, stage, seen.get(stage.name), jobs_follow=trains)
            if mixture.STEP in stages and rounds.wanted(context) and not run.stage(rounds.NAME).is_file():
                rounds.check(context, context.mixture.datasets)
        for stage in stages:
            if stage.name not in _FIRST and stage.wanted(context):
                follow = trains and stage.name in _TOWARDS_TRAINING
                _run_stage(context, stage, seen.get(stage.name), jobs_follow=follow)


def _sweep(context: RunContext) -> None:
    """Removes half-written files of killed processes. Branches and merges resume from theirs and clean up themselves;
    only this process writes the records of jobs."""
    run = context.run
    for folder in (run.state, run.data_folder, run.similarity.parent, run.evaluations):
        sweep_parts(folder)
    sweep_parts(run.root, below=False)
    sweep_parts(run.root, of=JOB)


def _look_ahead(context: RunContext, stages: Sequence[Step]) -> dict[str, _Seen]:
    """The stages that hold, in order, and the first one that does not: what is after it may rest on what it makes."""
    seen: dict[str, _Seen] = {}
    for stage in stages:
        if stage.depends is None or not stage.wanted(context):
            continue
        depends = stage.depends(context)
        state = check_stage(context.run, stage.name, depends)
        seen[stage.name] = depends, state
        if not state.fresh or stage.name in context.redo:
            break
    return seen


def _tell_plan(context: RunContext, seen: Mapping[str, _Seen], changes: Sequence[str]) -> None:
    """Before a run goes on: what it keeps, what it redoes, and why. Of a new run there is nothing to tell."""
    kept = [name for name, (_, state) in seen.items() if state.fresh and name not in context.redo]
    redone = [name for name in seen if name not in kept]
    known = bool(kept) or any(state.why or state.fresh for _, state in seen.values())
    if changes and known:
        _log.info("changed since the last run: %s", series(changes, limit=_CHANGES))
    if not redone or not known:
        return
    state = seen[redone[0]][1]
    why = "again, as you asked" if state.fresh else state.why
    parts = [f"keeps {', '.join(kept)}"] if kept else []
    reason = f" ({why})" if why else ""
    _log.info("%s", "; ".join([*parts, f"does {redone[0]}{reason} and what depends on it"]))


def _tell_company(context: RunContext) -> None:
    """Threads that share a core with another program keep all others waiting, several times in every layer."""
    cores = usable_cores()
    if context.config.launch.engine != "local" or cores == 1 or "OMP_NUM_THREADS" in os.environ or visible_gpus():
        return
    if busy := min(round(busy_elsewhere()), cores - 1):
        _log.info(
            "other programs keep %d of %d cores busy: OMP_NUM_THREADS=%d is faster beside them",
            busy,
            cores,
            cores - busy,
        )


def _run_stage(context: RunContext, stage: Step, seen: _Seen | None = None, *, jobs_follow: bool = False) -> None:
    """Runs a stage unless its result holds; `jobs_follow` if it has to run."""
    if stage.depends is None:
        with stage_events(context.run.events, stage.name):
            stage.run(context)
        return
    depends = seen[0] if seen is not None else stage.depends(context)
    state = seen[1] if seen is not None else check_stage(context.run, stage.name, depends)
    forced = stage.name in context.redo
    if state.fresh and not forced:
        _log.info("%s: unchanged, kept", stage.name)
        return
    why = "again, as you asked" if state.fresh else state.why
    if why:
        _log.info("%s (%s)", stage.says(context), why)
    elif stage.name not in _FIRST:  # an error in the data must be the only line
        _log.info("%s", stage.says(context))
    if jobs_follow:
        engine_named(context.config.launch.engine).expect(context.config.launch)
    forget_stage(context.run, stage.name)
    for path in (*state.damaged, *(stage.outputs(context) if forced else ())):
        _remove(path)
    with stage_events(context.run.events, stage.name) as facts:
        facts |= stage.run(context)
    if "incomplete" in facts:  # a partial run: the next run continues the stage
        return
    finish_stage(context.run, stage.name, depends, [path for path in stage.files(context) if path.is_file()])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _index(name: str, option: str) -> int:
    if name not in STAGE_NAMES:
        near = difflib.get_close_matches(name, STAGE_NAMES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the stages are {', '.join(STAGE_NAMES)}"
        raise InputError(f"no stage {name!r}; {hint}", field=option)
    return STAGE_NAMES.index(name)


class StageRecord(Record):
    """One finished stage. `depends` maps what it depends on (`train`, `mixture`, …) to its fingerprint."""

    stage: str
    depends: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)  # results, relative to the run → sha256


_Seen = tuple[dict[str, str], Kept[StageRecord]]  # what a stage depends on now, and whether it holds


def check_stage(run: RunDir, stage: str, depends: Mapping[str, str]) -> Kept[StageRecord]:
    """Compares the record of `stage` with what it depends on now."""
    return kept(run.stage(stage), StageRecord, {"depends": depends}, Files(run.root, always=True))


def finish_stage(run: RunDir, stage: str, depends: Mapping[str, str], files: Sequence[Path] = ()) -> None:
    """Records that `stage` is finished. Call it when everything that the stage wrote is on disk.

    Args:
        files: results whose checksums to record, so that a later run notices damage.
    """
    keep(run.stage(stage), StageRecord(stage=stage, depends=dict(depends)), run.root, files)


def forget_stage(run: RunDir, stage: str) -> None:
    """Removes the stage's record. Call it before you touch the stage's files."""
    run.stage(stage).unlink(missing_ok=True)
