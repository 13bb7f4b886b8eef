"""`merit merge RUN --rule R`: one more merge of a finished run's branches, as if `merge.also` had named the rule."""

from __future__ import annotations

from pydantic import ValidationError

from merit.base import extensions
from merit.base.errors import InputError, did_you_mean
from merit.base.files import write_bytes, write_text
from merit.config import RunConfig
from merit.config.run import also_name, dump_config
from merit.config.sections import RuleConfig
from merit.context import Method, RunContext
from merit.merge.rule import find_rule
from merit.merge.step import NAME, MethodMerge, make_merge
from merit.run.events import stage_events
from merit.run.guard import run_lock
from merit.train.step import measure_branches


def add_merge(context: RunContext, rule: str, ridge: float | None = None) -> tuple[Method, MethodMerge]:
    """Writes `merge.also` of the run's configuration and the merge; the next run evaluates it. Nothing else changes.

    A rule that the run has already gets this ridge.

    Args:
        ridge: as `merge.ridge`; None: the rule's default.

    Raises:
        InputError: no such rule, a ridge that is none, the run is not merged, or has this very merge under another
            name. Nothing was written then.
        StageError: a branch is damaged, or cannot be measured.
    """
    main = context.run.method()
    if not main.merge_record.is_file():
        raise InputError("this run has not been merged yet; `merit run` first", file=context.run.root)
    config = _extended(context.config, rule, ridge)
    partial = bool(MethodMerge.load(main.merge_record).left_out)
    new = RunContext(config, context.base, context.run, context.progress, partial=partial)
    method = next(item for item in new.methods if item.name == also_name(rule))
    with run_lock(context.run):
        before = context.run.config.read_bytes()
        write_text(context.run.config, dump_config(config, context.base))
        try:
            if find_rule(rule).needs_inputs:
                measure_branches(new, new.trained[:1])
            with stage_events(context.run.events, NAME) as facts:
                facts["merged"] = int(make_merge(new, method, set()))
        except InputError:
            write_bytes(context.run.config, before)
            raise
    return method, MethodMerge.load(method.dir.merge_record)


def _extended(config: RunConfig, rule: str, ridge: float | None) -> RunConfig:
    names = extensions.names("rules")
    if rule not in names:
        hint = did_you_mean(rule, names, otherwise=f"; the rules are {', '.join(names)}")
        raise InputError(f"no rule {rule!r:.60}{hint}", field="--rule")
    try:
        wanted = RuleConfig(rule=rule, ridge=ridge)
    except ValidationError:
        raise InputError(f"{ridge} is no ridge; give a number above 0, a million at most", field="--ridge") from None
    entries = {item.rule: item for item in config.merge.also} | {rule: wanted}
    values = config.model_dump()
    values["merge"]["also"] = list(entries.values())
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["ctx"]["problems"][0]
        raise InputError(place[1], field="--rule") from None
