"""Finds what is wrong before a dataset is read or anything is written: θ0, TRL's arguments, other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from merit.base.errors import InputError, Problems
from merit.base.files import read_json
from merit.base.kept import kept
from merit.base.progress import SILENT, Progress
from merit.context import RunContext
from merit.data.check import CheckReport, check_mixture
from merit.data.encode import POSITIONS, Encoder, Positions
from merit.evaluate.vllm_engine import check_engine
from merit.merge import rounds
from merit.merge.rule import find_rule
from merit.models.architecture import architecture_of
from merit.plan.memory import check_whole
from merit.run.layout import RunDir
from merit.split.splitter import SplitRequest, find_splitter, make_partition
from merit.train.spec import BranchSpec


def preflight_problems(context: RunContext) -> list[InputError]:
    """Everything that is wrong, an error each."""
    found: list[InputError] = []
    checks: tuple[Callable[[RunContext], None], ...] = (_model, _merge, _proxy, _trl, _groups, _rounds, _generation)
    for check in checks:
        try:
            check(context)
        except Problems as error:
            found += error.problems
        except InputError as error:
            found.append(error)
    return found


def preflight(context: RunContext) -> None:
    """As `preflight_problems`, for a run.

    Raises:
        InputError: something is wrong; several things come together, as `Problems`.
    """
    found = preflight_problems(context)
    if found:
        raise found[0] if len(found) == 1 else Problems(found)


def _model(context: RunContext) -> None:
    template = context.config.model.chat_template
    if template is not None and not Path(template).is_file():
        raise InputError("no such file", file=template, field="model.chat_template")
    _ = context.origin
    if context.config.prepare is not None and context.config.prepare.vision_tower is not None:
        _ = context.vision_tower


def _merge(context: RunContext) -> None:
    """What the merge will refuse costs nothing now, and every branch later.

    A trained branch says that θ0 has passed: a run that has nothing to do need not load transformers.
    """
    try:
        origin = context.origin
    except InputError:
        return  # which `_model` tells
    if not _has_trained(context.run, origin.fingerprint):
        from merit.merge.inputs import check_trained

        check_trained(origin.path)
        _check_readable(context, origin.path)


def _check_readable(context: RunContext, model: Path) -> None:
    """Refuses what sets a model in memory to checkpoints of other names, after all its branches were trained."""
    config = context.config
    wants = {
        "merge.weights": config.merge.weights if find_rule(config.merge.weights).sums is not None else None,
        "diagnose.checks": ", ".join(config.diagnose.checks) or None,
        "gate": "the gate" if config.gate is not None else None,
    }
    if not any(wants.values()):
        return
    known = architecture_of(read_json(model / "config.json"))
    if known is None or known.fused is None:
        return
    problems = [
        InputError(
            f"{what} cannot read this model: its checkpoints do not store `{known.fused}` under its own name and "
            "shape, since experts are stacked while loading",
            file=model,
            field=field,
        )
        for field, what in wants.items()
        if what is not None
    ]
    raise problems[0] if len(problems) == 1 else Problems(problems)


def _has_trained(run: RunDir, fingerprint: str) -> bool:
    return any(
        kept(done.with_name("spec.json"), BranchSpec, {"model_fingerprint": fingerprint}).fresh
        for done in run.method().branches.glob("*/DONE")
    )


def _proxy(context: RunContext) -> None:
    """θ0's token ids mean something else to a model with another vocabulary."""
    config = context.config
    if config.calibration.proxy is None:
        return
    from merit.models.loading import load_tokenizer

    try:
        proxy = load_tokenizer(context.measured_model, None)
    except InputError as error:
        raise InputError(error.message, file=error.file, field="calibration.proxy") from None
    if proxy.get_vocab() != context.tokenizer.get_vocab():
        raise InputError(
            "this model's vocabulary is not that of `model`; a proxy must have the same tokenizer",
            file=context.measured_model.path,
            field="calibration.proxy",
        )
    limit: Positions | None = getattr(proxy, POSITIONS)
    if limit is not None and limit.table and limit.count < Encoder(context.tokenizer, config.train.max_length).limit:
        raise InputError(
            f"this model has {limit.count:,} positions; set `train.max_length: {limit.count}`, or use another proxy",
            file=context.measured_model.path,
            field="calibration.proxy",
        )


def _trl(context: RunContext) -> None:
    if context.config.train.trl:
        from merit.train.trl_arguments import check_trl

        check_trl(context.config.train)


def _groups(context: RunContext) -> None:
    """The user's own groups name the datasets of the mixture; their tokens do not matter yet."""
    for method in context.trained:
        if find_splitter(method.splitter).needs_file and method.config.file is not None:
            tokens = dict.fromkeys(context.config.mixture, 1)
            request = SplitRequest(tokens, r=1, seed=context.config.seed, file=Path(method.config.file))
            make_partition(method.splitter, request)


def _rounds(context: RunContext) -> None:
    """What rounds rule out. Every branch of a round starts from all branches of the round before."""
    if not rounds.wanted(context):
        return
    if context.partial:
        said = "a round starts from all branches of the round before; leave this out, or set `train.rounds` to 1"
        raise InputError(said, field="--partial")
    check_whole(context.config.launch, context.base)


def _generation(context: RunContext) -> None:
    """A run that is evaluated already may be read where it could not be evaluated."""
    if not context.run.table.is_file():
        check_engine(context, data=False)


def check_run(path: Path, progress: Progress = SILENT) -> CheckReport:
    """Checks the configuration, what `preflight` does, and every row of every dataset. Writes nothing.

    Raises:
        InputError: the configuration cannot be read. All other problems are in the report.
    """
    context = RunContext.open(path, progress=progress)
    config = context.config
    found = preflight_problems(context)
    tokenizer = None
    try:
        tokenizer = context.tokenizer
        Encoder(tokenizer, config.train.max_length)
    except InputError as error:
        # Without θ0 there is no tokenizer: that adds nothing.
        if str(error) not in map(str, found):
            found.append(error)
        tokenizer = None
    report = check_mixture(config, context.base, tokenizer, progress, found)
    if rounds.wanted(context):
        try:
            rounds.check(context, [item.summary for item in report.datasets if item.summary and not item.unseen])
        except InputError as error:
            report = report.model_copy(update={"general": [*report.general, str(error)]})
    return report
