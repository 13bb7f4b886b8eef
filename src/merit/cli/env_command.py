"""`merit env`: the machine and the versions, for bug reports; `merit doctor`: can the numbers be trusted here?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from merit.cli.options import Json

if TYPE_CHECKING:
    from merit.doctor.checks import Diagnosis


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (env, doctor):
        app.command(rich_help_panel="This machine")(command)


def env(json: Json = False) -> None:
    """Prints versions, devices, memory, threads, caches and the extras that are installed, for bug reports."""
    from merit.cli.console import say, say_json
    from merit.doctor.environment import environment

    found = environment()
    if json:
        say_json(found)
        return
    for section, values in found.items():
        say(f"{section}:")
        for name, value in values.items():
            say(f"  {name}: {'–' if value is None else value}")


def doctor(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id, folder or .gguf file. Default: the embedded model.")
    ] = None,
    json: Json = False,
) -> None:
    """Checks that a model computes the same numbers here alone and batched, padded and packed, in fp32 and bf16, whole
    and sketched. Exits with 1 if it does not."""
    from merit.cli.console import say_json, show_progress
    from merit.doctor.examine import DEFAULT, examine_model

    with show_progress() as progress:
        found = examine_model(model or DEFAULT, progress)
    if json:
        say_json({**found.model_dump(mode="json"), "failed": found.failed})
    else:
        _print(found)
    if found.failed:
        raise typer.Exit(1)


def _print(found: Diagnosis) -> None:
    from merit.cli.console import print_table, say

    rows = [["check", "", "figure", "ok up to", "fails above"]]
    for item in found.findings:
        figure = "–" if item.figure is None else f"{item.figure:.1e}"
        rows.append([item.check, item.status, figure, f"{item.ok:g}", f"{item.fail:g}"])
    say(f"{found.model}, {found.parameters:,} parameters, on {found.device}")
    print_table(rows)
    for item in found.findings:
        say(f"{item.status}: {item.check}: {item.advice}")
    if found.scope:
        say(f"gradients were compared in parameters matching {found.scope} alone: all would not fit into memory")
