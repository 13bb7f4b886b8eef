"""`merit status`, `merit logs`, `merit cancel`: what the branches are doing, wherever they run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import Branch, Json, Method, Run

if TYPE_CHECKING:
    from merit.train.status import BranchStatus

_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (status, logs, cancel):
        app.command(rich_help_panel="Branches")(command)


def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every two seconds.")] = False,
    json: Json = False,
) -> None:
    """Every branch: queued, running, done or failed, how far, and where. Works from any machine that sees RUN."""
    from merit.cli.console import print_table, say_json, watch_tables
    from merit.run.layout import RunDir
    from merit.train.status import run_status

    if json:
        say_json([item.__dict__ for item in run_status(RunDir(run))])
    elif watch:
        watch_tables(lambda: _rows(run_status(RunDir(run))), _SECONDS)
    else:
        print_table(_rows(run_status(RunDir(run))))


def logs(
    run: Run,
    branch: Branch,
    method: Method = "merit",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the branch is done.")] = False,
) -> None:
    """What a branch has printed."""
    from merit.cli.console import say
    from merit.run.guard import refuse_links
    from merit.run.layout import RunDir

    refuse_links(run)
    folder = RunDir(run).method(method).branch(branch)
    if not folder.spec.is_file():
        raise InputError(f"no branch {branch} of {method!r} is planned here", file=run)
    seen = 0
    while True:
        finished = folder.done.is_file()
        if folder.output.is_file():
            with folder.output.open("rb") as handle:
                handle.seek(seen)
                text = handle.read()
            whole = text if finished or not follow else text[: text.rfind(b"\n") + 1]
            seen += len(whole)
            if whole:
                say(whole.decode("utf-8", errors="replace").rstrip("\n"))
        if finished or not follow:
            return
        time.sleep(_SECONDS)


def cancel(run: Run) -> None:
    """Ends the run's jobs on every engine. What they have learned up to their last checkpoint stays."""
    from merit.cli.console import say
    from merit.run.layout import RunDir
    from merit.train.status import cancel_run

    count = cancel_run(RunDir(run))
    say(f"{count} jobs are told to end; run again to resume" if count else "no job is queued or running")


def _rows(found: list[BranchStatus]) -> list[list[str]]:
    rows = [["branch", "state", "steps", "of", "job", "where", "start", "", "datasets"]]
    for item in found:
        rows.append(
            [
                f"{item.method} {item.branch}",
                item.state,
                f"{item.done:g}" if item.total else "–",
                f"{item.total:g}" if item.total else "–",
                f"{item.engine} {item.job}".strip()[:28],
                item.where,
                str(item.attempt or "–"),
                item.note,
                ", ".join(item.datasets),
            ]
        )
    return rows
