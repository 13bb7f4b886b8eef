"""`merit run`, and one command a stage."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import File, Json, Output, Precision, Redo, Worker, refuse_given

_CONFIGURED = "is for a worker; without --worker it is `{}` in the configuration"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Run")(run)
    for command in (conflict, split, evaluate):
        app.command(rich_help_panel="Stages")(command)


def run(
    file: File,
    output: Output = None,
    start: Annotated[str | None, typer.Option("--from", help="Do this stage and the later ones again.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge the branches that are done when others failed for good.")
    ] = False,
    deadline: Annotated[
        str | None, typer.Option(help="With --partial: how long to train at most, e.g. 90m or 8h.")
    ] = None,
    json: Json = False,
) -> None:
    """All stages: mixture, conflict, split, train, merge, evaluate, report. Resumes; skips what is done."""
    limit = _seconds(deadline) if deadline is not None else None
    if limit is not None and not partial:
        raise InputError("a deadline is for a partial run; add --partial", field="--deadline")
    execute(file, output, start=start, until=until, partial=partial, seconds=limit, json=json)


def conflict(
    context: typer.Context,
    file: File,
    output: Output = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which pairs fight, which layers carry it, who stands on each axis.")
    ] = False,
    worker: Worker = None,
    examples: Annotated[int | None, typer.Option(min=2, help="With --worker: calibration examples a dataset.")] = None,
    precision: Precision = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measures which datasets conflict: gradients at θ0, similarity, axes."""
    if worker is not None:
        from merit.cli.console import show_messages
        from merit.gradients.worker import run_worker

        show_messages()
        run_worker(file, worker, examples, precision)
        return
    refuse_given(context, "examples", why=_CONFIGURED.format("calibration.examples"))
    refuse_given(context, "precision", why=_CONFIGURED.format("train.precision"))
    execute(
        file,
        output,
        start="conflict" if redo else None,
        until="conflict",
        json=json,
        show="explanation" if explain else None,
    )


def split(file: File, output: Output = None, redo: Redo = False, json: Json = False) -> None:
    """Cuts the mixture into groups, after `conflict`."""
    execute(file, output, start="split" if redo else None, until="split", json=json)


def evaluate(
    context: typer.Context,
    file: File,
    output: Output = None,
    worker: Worker = None,
    precision: Precision = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measures every model of the run, after `merge`."""
    if worker is not None:
        from merit.cli.console import show_messages
        from merit.evaluate.measure import run_worker

        show_messages()
        run_worker(file, worker, precision)
        return
    refuse_given(context, "precision", why=_CONFIGURED.format("train.precision"))
    execute(file, output, start="evaluate" if redo else None, until="evaluate", json=json)


def execute(
    file: Path,
    output: Path | None,
    *,
    start: str | None,
    until: str | None,
    json: bool,
    show: str | None = None,
    partial: bool = False,
    seconds: float | None = None,
) -> None:
    """Runs the pipeline with bars, and prints what came of it: `show`, or else the result of stage `until`."""
    from merit.cli.console import show_progress
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(file, output=output, progress=progress)
        context.partial = partial
        context.deadline = time.time() + seconds if seconds is not None else None
        # The configuration is fine: only now is it worth the imports of the stages.
        from merit.cli.results import print_results
        from merit.pipeline import run_pipeline

        run_pipeline(context, start=start, until=until)
    print_results(context.run, show or until, json=json)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise InputError(f"{text!r} is no length of time; write 90m, 8h or 2d", field="--deadline")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
