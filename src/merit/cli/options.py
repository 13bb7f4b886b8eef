"""The arguments and options that several commands share, and what the Tab key offers for them.

For Tab a few folders are listed and small files read; whatever is missing or damaged just offers nothing. Where nothing
is offered, the shell completes file names by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from merit.base.errors import InputError, printable
from merit.run.layout import MAIN_METHOD, RunDir

_PLACES = ("", "runs")  # where runs lie, as seen from the folder that is typed
_MOST = 200  # entries of a folder that are looked at


def complete_run(incomplete: str) -> list[str]:
    """Run directories below the folder typed so far, and in its `runs` folder."""
    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = (folder for place in _PLACES for folder in _folders(typed / place) if RunDir(folder).config.is_file())
    return _matching(map(str, found), incomplete)


def complete_file_or_run(incomplete: str) -> list[str]:
    """Configurations beside the runs."""
    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    files = (str(path) for path in _entries(typed) if path.suffix in (".yaml", ".yml"))
    return [*_matching(files, incomplete), *complete_run(incomplete)]


def complete_branch(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The branches of the run on the line, with what they are trained on."""
    run = _run(ctx)
    if run is None:
        return []
    planned = run.method(str(ctx.params.get("method") or MAIN_METHOD)).planned_branches()
    return [(str(k), _datasets(planned[k].spec)) for k in sorted(planned) if str(k).startswith(incomplete)]


def complete_method(ctx: typer.Context, incomplete: str) -> list[str]:
    """The main method and the baselines of the run on the line that have branches."""
    run = _run(ctx)
    folders = [] if run is None else _folders(run.baselines)
    names = [folder.name for folder in folders if not (folder / "merge.json").exists() or (folder / "split").is_dir()]
    return _matching([MAIN_METHOD, *names], incomplete)


def complete_dataset(ctx: typer.Context, incomplete: str) -> list[str]:
    """The datasets of the run on the line."""
    run = _run(ctx)
    if run is None:
        return []
    return _matching(_names(_object(run.mixture).get("datasets")), incomplete)


def _run(ctx: typer.Context) -> RunDir | None:
    # After an option that waits for its value, the parser has not sorted the arguments yet.
    path = ctx.params.get("run") or ctx.params.get("file") or next(iter(ctx.args), None)
    return RunDir(Path(path)) if path else None


def _datasets(spec: Path) -> str:
    """What a branch is trained on. Control characters would write on the terminal, and shells take a line each."""
    return printable(", ".join(_names(_object(spec).get("data"))))


def _names(items: Any) -> list[str]:
    found = [item.get("name") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return [name for name in found if isinstance(name, str)]


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir())


def _entries(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())[:_MOST]
    except OSError:
        return []
    return [path for path in found if not path.name.startswith(".")]


def _matching(names: Any, incomplete: str) -> list[str]:
    # A name with a control character would write on the terminal.
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]


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
Method = Annotated[str, typer.Option(help="The method of the branches.", autocompletion=complete_method)]
Output = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. Default: runs/NAME beside FILE.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Redo = Annotated[bool, typer.Option("--redo", help="Redo it even if nothing has changed.")]
Worker = Annotated[
    int | None,
    typer.Option(min=0, help="Work on this stage as worker number N, beside others. merit starts workers itself."),
]
Precision = Annotated[str | None, typer.Option(help="With --worker: bf16 or fp32, as in the main process.")]


def refuse_given(context: typer.Context, *names: str, why: str) -> None:
    """Refuses options that this command would ignore: whoever gives one expects it to work.

    Raises:
        InputError: one of the parameters `names` stands on the command line; the message is `why`.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise InputError(why, field=parameter.opts[0])
