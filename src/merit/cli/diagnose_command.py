"""`merit diagnose`: what the basin looks like after a run; `merit theory`: what the quadratic model says."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from merit.base import extensions
from merit.base.errors import InputError
from merit.cli.options import File, Json, Output, Redo


def _known() -> str:
    try:
        return ", ".join(extensions.names("checks"))
    except InputError as error:  # `merit --help` must work all the same
        return f"none: {error}"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Stages")(diagnose)
    app.command(rich_help_panel="Inspect")(theory)


def diagnose(
    file: File,
    output: Output = None,
    checks: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {_known()}. Default: the run's, or all.")
    ] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Checks θ0, branches and merge of a finished run: barriers, displacement, gain, flatness, curvature."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.context import RunContext
    from merit.diagnose.check import all_checks, result_rows

    with show_progress() as progress:
        context = RunContext.open(file, output=output, progress=progress)
        wanted = pick_checks(checks) or context.config.diagnose.checks or list(all_checks())
        from merit.diagnose.step import diagnose_run

        results = diagnose_run(context, wanted, redo=redo)
    from merit.diagnose.verdict import verdict

    reached = verdict(results)
    if json:
        found = {name: result.model_dump(mode="json") for name, result in results.items()}
        say_json({"run": str(context.run.root), "results": found, "verdict": reached.model_dump(mode="json")})
        return
    print_table(result_rows(results))
    say(reached.headline)
    for reason in reached.reasons:
        say(f"  {reason}")
    say(f"report: {context.run.report}")


def pick_checks(text: str | None) -> list[str]:
    """The checks named in a comma-separated list.

    Raises:
        InputError: one of them is unknown.
    """
    names = extensions.names("checks")
    found: list[str] = []
    for word in (text or "").split(","):
        name = word.strip()
        if name in names:
            found.append(name)
        elif name:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the checks are {', '.join(names)}"
            raise InputError(f"no check {name!r}; {hint}", field="--checks")
    return list(dict.fromkeys(found))


def theory(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random instances.")] = 0,
    instances: Annotated[int, typer.Option(min=1, max=10_000, help="Random instances per check.")] = 60,
    axes: Annotated[int, typer.Option(min=1, max=3, help="r: compare splits with 2^r groups.")] = 1,
    json: Json = False,
) -> None:
    """Tests the paper's theorems on quadratic tasks, and shows their limits. Needs no run or model."""
    from merit.cli.console import print_table, say, say_json
    from merit.theory.lab import lab_rows, lab_sentences, run_lab
    from merit.theory.splits import split_rows

    result = run_lab(seed=seed, instances=instances, axes=axes)
    if json:
        say_json(result.model_dump(mode="json"))
        return
    print_table(lab_rows(result))
    say("")
    print_table(split_rows(result.splits))
    for sentence in lab_sentences(result):
        say(sentence)
