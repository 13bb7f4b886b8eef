"""`merit handover` and `merit adopt`: branches in the hands of another trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import Branch, File, Json, Method, Output, Redo, Run

TRAINERS = ("trl", "axolotl", "llamafactory")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Branches")(handover)
    app.command(rich_help_panel="Branches")(adopt)


def handover(
    file: File,
    to: Annotated[str, typer.Option(help=f"{', '.join(TRAINERS)}.", autocompletion=lambda: list(TRAINERS))],
    output: Output = None,
    method: Method = "merit",
    json: Json = False,
) -> None:
    """Writes a folder per branch for another trainer: configuration, data, one command. Splits first."""
    if to not in TRAINERS:
        raise InputError(f"no trainer {to!r}; there are: {', '.join(TRAINERS)}", field="--to")
    from merit.cli.console import say, say_json, show_progress
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(file, output=output, progress=progress)
        from merit.handover.write import hand_over
        from merit.pipeline import run_pipeline

        run_pipeline(context, until="split")
        folders = hand_over(context, to, method)
    if json:
        say_json([str(folder) for folder in folders])
        return
    for folder in folders:
        say(str(folder))
    if folders:
        say("each README.md has the one command to run, and the one that brings the branch back")


def adopt(
    run: Run,
    branch: Branch,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The trainer's output, or the hand-over's folder.")],
    method: Method = "merit",
    tokens: Annotated[int | None, typer.Option(min=1, help="Supervised tokens that it trained on.")] = None,
    any_budget: Annotated[bool, typer.Option("--any-budget", help="Accept a budget far from the plan.")] = False,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Checks a branch that another trainer trained, and puts it into the run."""
    from merit.cli.console import say, say_json, show_progress
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(run, progress=progress)
        from merit.handover.adopt import adopt_branch

        result = adopt_branch(context, method, branch, folder, tokens=tokens, any_budget=any_budget, redo=redo)
    if json:
        say_json(result.model_dump(mode="json"))
    else:
        say(f"{method} branch {branch}: adopted, {result.supervised_tokens:,} supervised tokens; `merit run` merges it")
