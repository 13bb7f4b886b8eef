"""`merit env`: the machine and the versions, for bug reports; `merit doctor`: can the numbers be trusted here?"""

from __future__ import annotations

import typer

from merit.cli.run_commands import Json


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (env,):
        app.command(rich_help_panel="This machine")(command)


def env(json: Json = False) -> None:
    """Prints versions, devices, memory, threads, caches and the extras that are installed, for bug reports."""
    from merit.cli.console import say, say_json
    from merit.stages.environment import environment

    found = environment()
    if json:
        say_json(found)
        return
    for section, values in found.items():
        say(f"{section}:")
        for name, value in values.items():
            say(f"  {name}: {'–' if value is None else value}")
