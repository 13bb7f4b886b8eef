"""Groups Prepare a run and This machine: `merit init`, `check`, `plan`, `schema`, `env`, `doctor`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base import extensions
from merit.base.errors import InputError
from merit.cli.options import File, Json

if TYPE_CHECKING:
    from merit.data.check import CheckReport
    from merit.data.mixture import Rendered
    from merit.doctor.checks import Diagnosis


def _trainers() -> str:
    with contextlib.suppress(InputError):  # said when a configuration is read
        return ", ".join(extensions.names("importers"))
    return "another trainer"


def init(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE …",
            help="A folder of data files, a file, ids of Hub datasets or of a collection, or a configuration of "
            f"{_trainers()}.",
        ),
    ],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Default: merit.yaml beside the data.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model to tune: Hub id, folder, .gguf file or embedded:NAME. Default: a small one.",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Of a file: make one dataset for each of its values.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Set everything as in the paper.")] = False,
) -> None:
    """Writes a commented merit.yaml for data files, Hub datasets, or another trainer's configuration."""
    from merit.base.files import write_text
    from merit.cli.console import say
    from merit.data.init import home_of, propose_config

    target = output or home_of(sources) / "merit.yaml"
    if target.exists() and not force:
        raise InputError("the file exists already; --force replaces it", file=target)
    if model is not None:
        from merit.models.source import check_model_path

        check_model_path(model, Path())
    proposal = propose_config(*sources, home=target.parent, published=published, by=by, model=model)
    write_text(target, proposal.text)
    for note in proposal.notes:
        say(note)
    say(f"wrote {target}\nnext: merit check {target}   then: merit run {target}")


def check(
    file: File,
    show: Annotated[
        list[str] | None, typer.Option("--show", metavar="NAME", help="Show the examples of this dataset. Repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Reads every dataset, validates everything without loading a model, and lists all problems at once."""

    from merit.cli.console import show_progress
    from merit.plan.preflight import check_run

    with show_progress() as progress:
        report = check_run(file, progress)
    if not print_report(report, json=json, show=show or ()):
        raise typer.Exit(2)


def plan(
    file: File,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Training speed of one device. Default: measured here in seconds.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Memory of the device that trains a branch, in GB. Default: this machine's.")
    ] = None,
    json: Json = False,
) -> None:
    """Estimates what each stage will cost, beside joint training, and states its assumptions."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.plan.costs import plan_rows
    from merit.plan.estimate import plan_run

    with show_progress() as progress:
        result = plan_run(file, tokens_per_second, progress, device=None if memory is None else round(memory * 1e9))
    if json:
        say_json(result.model_dump(mode="json"))
    else:
        rows = plan_rows(result)
        print_table(rows, legend=[rows[0].index(title) for title in _BELOW])
        for line in (result.memory.sentence, *result.assumptions):
            say(f"· {line}")
    result.memory.check()


_BELOW = ("supervised", "FLOPs", "disk", "longest branch")  # of a plan, where the terminal is narrow


def schema() -> None:
    """Prints the JSON Schema of the configuration, for editors."""
    import json as json_module

    from merit.cli.console import say_as_is
    from merit.config import RunConfig

    say_as_is(json_module.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False))


_MARK = ("⟦", "⟧")


def print_report(report: CheckReport, *, json: bool, show: Sequence[str] = ()) -> bool:
    """Prints the report: counts and examples on stdout, problems on stderr. Returns whether a run can start.

    Args:
        show: datasets to show all rendered examples of.

    Raises:
        InputError: no dataset has such a name.
    """
    from merit.base.errors import InputError, did_you_mean
    from merit.cli.console import complain, say, say_json

    names = [dataset.name for dataset in report.datasets]
    for name in show:
        if name not in names:
            raise InputError(f"no dataset {name!r}{did_you_mean(name, names)}", field="--show")

    if json:
        say_json(report.model_dump(mode="json"))
    else:
        _print_counts(report)
        _print_examples(report, show)
        for dataset in report.datasets:
            for warning in dataset.warnings:
                say(f"{dataset.name}: {warning}")
        for warning in report.warnings:
            say(warning)
    for line in report.problems:
        complain(line)
    if report.ok and not json:
        say("ready to run")
    return report.ok


def _print_counts(report: CheckReport) -> None:
    from merit.cli.console import print_table

    rows = [["dataset", "format", "train", "held out", "supervised tokens", "tokens: half", "90%", "longest", "cut"]]
    for dataset in report.datasets:
        item = dataset.summary
        if item is None:
            rows.append([dataset.name, *["–"] * 8])
            continue
        lengths = [f"{item.length_quantiles[key]:,}" for key in ("0.5", "0.9", "1.0")]
        counts = [item.train.examples, item.held_out.examples, item.train.supervised_tokens]
        name = item.name + (" (unseen)" if dataset.unseen else "")
        rows.append([name, item.format, *(f"{count:,}" for count in counts), *lengths, f"{item.truncated:,}"])
    if all(row[-1] in ("0", "–") for row in rows[1:]):  # nothing was cut
        rows = [row[:-1] for row in rows]
    print_table(rows)


def _print_examples(report: CheckReport, show: Sequence[str]) -> None:
    """Examples as the model sees them: those of the named datasets, or one each of the first three datasets."""
    from merit.cli.console import say, say_as_is

    found = [(item.name, item.summary.rendered) for item in report.datasets if item.summary and item.summary.rendered]
    if show:
        shown = [(name, example) for name, rendered in found if name in show for example in rendered]
    else:
        unseen = {item.name for item in report.datasets if item.unseen}
        shown = [(name, rendered[0]) for name, rendered in found if name not in unseen][:3]
    if not shown:
        return
    more = "" if show or len(found) == len(shown) else " (--show NAME: those of another dataset)"
    say(f"Examples as the model sees them; {_MARK[0]}what carries loss{_MARK[1]}{more}:")
    for name, rendered in shown:
        say(f"── {name}")
        say_as_is(_marked(rendered))


def _marked(rendered: Rendered) -> str:
    whole = "".join(f"{_MARK[0]}{text}{_MARK[1]}" if loss else text for text, loss in rendered.pieces)
    return "\n".join(line if len(line) <= 400 else f"{line[:400]} …" for line in whole.split("\n"))


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
        _print_diagnosis(found)
    if found.failed:
        raise typer.Exit(1)


def _print_diagnosis(found: Diagnosis) -> None:
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
