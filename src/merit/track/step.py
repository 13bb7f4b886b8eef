"""Stage `track`: the merge as a run in the trackers of `train.trl.report_to`, in the group of its branches."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from merit.base.record import fingerprint
from merit.context import RunContext, Step
from merit.merge.step import MethodMerge
from merit.track.figures import figures
from merit.train.trackers import Tracked, group_name

NAME = "track"
_RUN = "merge"  # its name in the group
_TRACKERS = ("wandb", "trackio", "tensorboard", "mlflow")  # in which it can be opened
# trackio's argument → the one of `train.trl` from which transformers takes it for a branch.
_TRACKIO = {"space_id": "trackio_space_id", "bucket_id": "trackio_bucket_id", "private": "hub_private_repo"}
_log = logging.getLogger(__name__)


def trackers(context: RunContext) -> list[str]:
    """The trackers that get the merge."""
    named = context.config.train.trl.get("report_to") or []
    names = [named] if isinstance(named, str) else list(named)
    if "all" in names:
        # A folder of this name in the working directory has no origin.
        specs = {name: importlib.util.find_spec(name) for name in _TRACKERS}
        return [name for name, spec in specs.items() if spec is not None and spec.origin is not None]
    return [name for name in _TRACKERS if name in names]


def depends(context: RunContext) -> dict[str, str]:
    """Where the figures go, and the figures."""
    return {
        "trackers": fingerprint(trackers(context), group_name(context.run)),
        "figures": fingerprint(list(figures(context).items())),
    }


def run(context: RunContext) -> dict[str, Any]:
    """Logs the figures. A tracker that fails does not fail the run, which is done; the next run tries it again."""
    found, failed = figures(context), {}
    tracked = _tracked(context)
    with tracked.variables():
        for name in trackers(context):
            try:
                _log_run(context, name, tracked, found)
            except Exception as error:
                failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                _log.warning("%s does not have the merge (%s); run again to try again", name, failed[name])
    return {"figures": sum(map(len, found.values())), **({"incomplete": failed} if failed else {})}


def _tracked(context: RunContext) -> Tracked:
    group, main = group_name(context.run), context.methods[0]
    return Tracked(
        group=group,
        name=_RUN,
        kind="merge",
        ident=fingerprint(group, _RUN, MethodMerge.load(main.dir.merge_record).fingerprint),
        home=context.run.tracking,
        events=context.run.tracking / _RUN,
        facts={"rounds": str(main.rounds)},
    )


def _log_run(context: RunContext, name: str, tracked: Tracked, found: Mapping[int, Mapping[str, float]]) -> None:
    tracker = _open(context, name, tracked)
    tracker.start()
    try:
        if name == "wandb":  # it takes no step twice, and this run may be logged anew: so the round is a figure
            tracker.tracker.define_metric("*", step_metric="round")
        for number, values in found.items():
            if name == "wandb":
                tracker.log({**values, "round": number})
            else:
                tracker.log(dict(values), step=number)
    finally:
        tracker.finish()


def _open(context: RunContext, name: str, tracked: Tracked) -> Any:
    """accelerate's tracker, which is not started yet; its projects are those that transformers gives the branches."""
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's own logger asks for it
    tracked.home.mkdir(parents=True, exist_ok=True)
    trl = context.config.train.trl
    if name == "wandb":
        return tracking.WandBTracker(os.environ.get("WANDB_PROJECT", "huggingface"), name=tracked.name)
    if name == "trackio":
        own = {key: trl[source] for key, source in _TRACKIO.items() if trl.get(source) is not None}
        return tracking.TrackioTracker(trl.get("project", tracked.group), name=tracked.name, resume="allow", **own)
    if name == "mlflow":
        return tracking.MLflowTracker(tracked.group, run_name=tracked.name)
    users = os.environ["TENSORBOARD_LOGGING_DIR"]
    if users != str(tracked.events):
        return tracking.TensorBoardTracker(tracked.name, users)
    with contextlib.suppress(FileNotFoundError):  # an earlier log would be drawn over this one
        shutil.rmtree(tracked.events)
    return tracking.TensorBoardTracker(tracked.name, tracked.home)


STEP = Step(
    NAME,
    run,
    depends,
    says=lambda context: f"logging the merge to {', '.join(trackers(context))}",
    wanted=lambda context: bool(trackers(context)),
)
