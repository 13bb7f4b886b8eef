"""Stage `diagnose`: the checks of the basin and of the theory, on a run that has been merged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import sweep_parts
from merit.base.record import fingerprint
from merit.config.diagnose import CheckName
from merit.context import Method, RunContext, Step
from merit.diagnose.bench import Bench
from merit.diagnose.models import JOINT, Models
from merit.diagnose.records import CheckResult
from merit.merge.step import MethodMerge, merged_branches
from merit.models.source import weights_fingerprint
from merit.run.events import stage_events
from merit.run.guard import run_lock
from merit.run.layout import RunDir
from merit.split.partition import Partition
from merit.split.splitter import find_splitter

NAME = "diagnose"
_log = logging.getLogger(__name__)


def wanted(context: RunContext) -> bool:
    """Only if the configuration lists checks, and the split made more than one branch."""
    if not context.config.diagnose.checks:
        return False
    if len(Partition.load(context.methods[0].dir.partition).groups) > 1:
        return True
    _log.warning("diagnose: skipped; the mixture was not split, so there are no branches to compare")
    return False


def depends(context: RunContext) -> dict[str, str]:
    """Every model's weights, the data, and the checks and their settings."""
    files = [mark for check in context.config.diagnose.checks for mark in extensions.marks("checks", check)]
    return {
        "models": _models_mark(context),
        "mixture": fingerprint(context.data_fingerprints()),
        "diagnose": fingerprint(context.config.diagnose, context.config.train.precision, context.config.seed, *files),
        "conflict": fingerprint(context.config.calibration, context.config.split.mark),
    }


def run(context: RunContext) -> dict[str, Any]:
    """Writes diagnostics/*.json for the checks that the configuration lists."""
    return {"checks": len(run_checks(context, context.config.diagnose.checks))}


def run_checks(
    context: RunContext, checks: Sequence[CheckName], *, redo: bool = False, number: int | None = None
) -> dict[str, CheckResult]:
    """Each check's result, measured only where it is not stored already.

    Args:
        number: the round to diagnose, from what its branches started from; None: the whole training, from θ0.

    Raises:
        InputError: the run has no merge yet, fewer than two branches, or a checkpoint is missing.
        StageError: a loss is not finite.
    """
    bench = make_bench(context, number)
    sweep_parts(context.run.diagnostics)
    return {check: bench.check(check, redo=redo) for check in checks}


def diagnose_run(
    context: RunContext, checks: Sequence[CheckName], *, redo: bool = False, number: int | None = None
) -> dict[str, CheckResult]:
    """`run_checks` on a finished run, with its lock held, and the report drawn again.

    Raises:
        InputError: as `run_checks`; or another process works on the run. Nothing was written then.
    """
    run_models(context, number).check()
    from merit.report.build import build_report

    with run_lock(context.run):
        with stage_events(context.run.events, NAME) as facts:
            results = run_checks(context, checks, redo=redo, number=number)
            facts["checks"] = len(results)
        build_report(context.run.root)
    return results


def make_bench(context: RunContext, number: int | None = None) -> Bench:
    """What the checks share; nothing is loaded yet.

    Raises:
        InputError: as `run_checks`.
    """
    models = run_models(context, number)
    models.check()
    return Bench(context, models, fingerprint(_models_mark(context, number), context.data_fingerprints()), number)


def run_models(context: RunContext, number: int | None = None) -> Models:
    """The main method's branches and merge, and the first baseline that is joint training. Of one round: what its
    branches started from in place of θ0, and no joint training.

    Raises:
        InputError: not merged yet, or no such round.
    """
    main, *baselines = context.trained
    base = context.model.path
    if number is not None:
        main, baselines = _round(main, number), []
        base = context.start(main).path
    merge = _merge(context.run, main)
    branches = [k for k in range(len(merge.weights) + len(merge.left_out)) if k not in merge.left_out]
    if len(branches) < 2:
        raise InputError("a diagnosis needs at least two branches; the main method of this run has one")
    joint = next((item for item in baselines if find_splitter(item.splitter).one_group and _is_merged(item)), None)
    trajectories = {f"branch {i}": main.dir.branch(k).snapshot(0).parent for i, k in enumerate(branches)}
    if joint:
        trajectories[JOINT] = joint.dir.branch(0).snapshot(0).parent
    return Models(
        trajectories=trajectories,
        base=base,
        branches=[main.dir.branch(k).checkpoint for k in branches],
        weights=merge.weights,
        merge=main.dir.merged(),
        joint=joint.dir.merged() if joint else None,
    )


def _round(main: Method, number: int) -> Method:
    if main.rounds == 1 or number > main.rounds:
        have = "one round" if main.rounds == 1 else f"{main.rounds} rounds"
        raise InputError(f"{number}, but the main method of this run has {have}", field="--round")
    return [*main.before, main][number - 1]


def _merge(run: RunDir, method: Method) -> MethodMerge:
    if not run.mixture.is_file():
        raise InputError("nothing has been run here yet; `merit run` first", file=run.root)
    if not method.dir.merge_record.is_file():
        raise InputError("this run has not been merged yet; `merit run` first", file=run.root)
    if not method.dir.merged().is_dir():
        raise InputError(
            "the merge itself (β = 1) is not there; add 1.0 to `merge.scales` and run again", file=run.root
        )
    return MethodMerge.load(method.dir.merge_record)


def _is_merged(method: Method) -> bool:
    return method.dir.merge_record.is_file() and method.dir.merged().is_dir()


def _models_mark(context: RunContext, number: int | None = None) -> str:
    models, main = run_models(context, number), context.methods[0]
    results = merged_branches(main if number is None else _round(main, number))
    joint = weights_fingerprint(models.joint) if models.joint else None
    return fingerprint(
        context.model.fingerprint,
        [result.files for result in results.values()],
        list(models.weights),
        weights_fingerprint(models.merge),
        joint,
        *([] if number is None else [weights_fingerprint(models.base)]),
    )


STEP = Step(
    NAME,
    run,
    depends,
    says=lambda context: f"checking the merge: {', '.join(context.config.diagnose.checks)}",
    outputs=lambda context: [context.run.diagnostics],
    files=lambda context: [context.run.diagnostic(check) for check in context.config.diagnose.checks],
    wanted=wanted,
)
