"""`merit init`, `check`, `plan`, `schema`: everything before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merit.cli.options import File, Json

_PANEL = "Prepare a run"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (init, check, plan, schema):
        app.command(rich_help_panel=_PANEL)(command)


def init(
    folder: Annotated[Path, typer.Argument(help="A folder of .jsonl, .json, .parquet or .csv files.")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Default: merit.yaml in the folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Writes a commented merit.yaml for a folder of data files: one dataset per file."""
    from merit.base.errors import InputError
    from merit.base.files import write_text
    from merit.cli.console import say
    from merit.data.init import propose_config

    target = output or folder / "merit.yaml"
    if target.exists() and not force:
        raise InputError("there already; --force replaces it", file=target)
    write_text(target, propose_config(folder))
    say(f"wrote {target}\nnext: merit check {target}   then: merit run {target}")


def check(file: File, json: Json = False) -> None:
    """Reads every dataset, validates everything without loading a model, and lists all problems at once."""
    from merit.cli.check_output import print_report
    from merit.cli.console import show_progress
    from merit.plan.preflight import check_run

    with show_progress() as progress:
        report = check_run(file, progress)
    if not print_report(report, json=json):
        raise typer.Exit(2)


def plan(
    file: File,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Training speed of one device. Default: measured here in seconds.")
    ] = None,
    json: Json = False,
) -> None:
    """Estimates what each stage will cost, beside joint training, and states its assumptions."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.plan.costs import plan_rows
    from merit.plan.estimate import plan_run

    with show_progress() as progress:
        result = plan_run(file, tokens_per_second, progress)
    if json:
        say_json(result.model_dump(mode="json"))
        return
    print_table(plan_rows(result))
    for line in result.assumptions:
        say(f"· {line}")


def schema() -> None:
    """Prints the JSON Schema of the configuration, for editors."""
    import json as json_module

    from merit.cli.console import say
    from merit.config import RunConfig

    say(json_module.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False))
