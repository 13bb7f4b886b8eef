"""`merit handover`: every branch of a method as a folder for another trainer."""

from __future__ import annotations

import logging
from pathlib import Path

from merit.base.errors import InputError
from merit.context import Method, RunContext
from merit.run.events import stage_events
from merit.run.guard import run_lock
from merit.train.step import branch_specs, prepare_branch

_log = logging.getLogger(__name__)


def hand_over(context: RunContext, trainer: str, method: str) -> list[Path]:
    """Writes the folders of the branches that are not done yet; the run must be split.

    Raises:
        InputError: no such method, no partition yet, a branch has images, or another process works on the run.
    """
    from merit.handover.bundle import refuse_images
    from merit.handover.write import write_handover

    chosen = find_method(context, method)
    if not chosen.dir.partition.is_file():
        raise InputError("this run is not split yet; `merit split` comes first", file=context.run.root)
    folders = []
    with run_lock(context.run), stage_events(context.run.events, f"handover {trainer}"):
        specs = branch_specs(context, chosen)
        refuse_images(context.run, specs)
        with context.progress.bar(f"handover to {trainer}", total=len(specs), unit="branch") as bar:
            for spec in specs:
                if prepare_branch(chosen.dir.branch(spec.branch), spec):
                    folders.append(write_handover(context.run, spec, trainer, _reference(context)))
                else:
                    _log.info("%s branch %d is done already", method, spec.branch)
                bar.update(spec.branch + 1)
    return folders


def find_method(context: RunContext, name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: the run has no such method.
    """
    for method in context.methods:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in context.methods)
    raise InputError(f"no method {name!r} in this run; there are: {known}", field="--method")


def _reference(context: RunContext) -> str:
    """θ0 as another program loads it: its Hub id where it has one, else the folder on this machine."""
    path = context.config.model.path
    local = path.startswith("embedded:") or (context.base / path).exists()
    return str(context.model.path.resolve()) if local else path
