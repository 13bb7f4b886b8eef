"""`merit diagnose`: what the basin looks like after a run; `merit theory`: what the quadratic model says."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import File, Json, Output, Redo
from merit.config.checks import CHECK_NAMES, CheckName


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Stages")(diagnose)
    app.command(rich_help_panel="Inspect")(theory)


def diagnose(
    file: File,
    output: Output = None,
    checks: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(CHECK_NAMES)}. Default: the run's, or all.")
    ] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Looks at θ0, branches and merge of a finished run: barriers, displacement, gain, flatness, curvature."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(file, output=output, progress=progress)
        wanted = pick_checks(checks) or context.config.diagnose.checks or list(CHECK_NAMES)
        from merit.diagnose.step import diagnose_run

        results = diagnose_run(context, wanted, redo=redo)
    from merit.diagnose.verdict import verdict
    from merit.diagnose.words import result_rows

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


def pick_checks(text: str | None) -> list[CheckName]:
    """The checks named in a comma-separated list.

    Raises:
        InputError: one of them is unknown.
    """
    found: list[CheckName] = []
    for word in (text or "").split(","):
        name = word.strip()
        known = next((check for check in CHECK_NAMES if check == name), None)
        if known is not None:
            found.append(known)
        elif name:
            near = difflib.get_close_matches(name, CHECK_NAMES, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the checks are {', '.join(CHECK_NAMES)}"
            raise InputError(f"no check {name!r}; {hint}", field="--checks")
    return list(dict.fromkeys(found))


def theory(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random instances.")] = 0,
    instances: Annotated[int, typer.Option(min=1, max=10_000, help="Random instances a check.")] = 60,
    axes: Annotated[int, typer.Option(min=1, max=3, help="r: the splits compared have 2^r groups.")] = 1,
    json: Json = False,
) -> None:
    """Shows the paper's theorems in quadratic tasks, and where they stop. Needs no run and no model."""
    from merit.cli.console import print_table, say, say_json
    from merit.theory.findings import lab_rows, lab_sentences, split_rows
    from merit.theory.lab import run_lab

    result = run_lab(seed=seed, instances=instances, axes=axes)
    if json:
        say_json(result.model_dump(mode="json"))
        return
    print_table(lab_rows(result))
    say("")
    print_table(split_rows(result.splits))
    for sentence in lab_sentences(result):
        say(sentence)
