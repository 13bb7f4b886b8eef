"""The arguments and options that several commands share, and the refusal of those that say nothing where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.cli.completion import complete_branch, complete_file_or_run, complete_method, complete_run

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE|RUN",
        help="A configuration, or the directory of an earlier run.",
        autocompletion=complete_file_or_run,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=complete_run)]
Branch = Annotated[int, typer.Argument(min=0, help="Which branch.", autocompletion=complete_branch)]
Method = Annotated[str, typer.Option(help="The method that the branches belong to.", autocompletion=complete_method)]
Output = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. Default: runs/NAME beside FILE.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Redo = Annotated[bool, typer.Option("--redo", help="Do it again even if nothing has changed.")]
Worker = Annotated[
    int | None,
    typer.Option(min=0, help="Only do pieces of this stage, beside other workers: the job of an executor."),
]
Precision = Annotated[
    str | None, typer.Option(help="With --worker: bf16 or fp32, as the process has it that shares the work.")
]


def refuse_given(context: typer.Context, *names: str, why: str) -> None:
    """Options that would be read by nobody must not be passed over: who gave one expects it to work.

    Raises:
        InputError: one of the parameters `names` stands on the command line; the message is `why`.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise InputError(why, field=parameter.opts[0])
