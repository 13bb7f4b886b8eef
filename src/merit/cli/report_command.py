"""`merit report` and `merit compare`: the story of one run, and several runs side by side."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.cli.completion import complete_run
from merit.cli.options import File, Json, Output

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN RUN …", help="Run directories; the first is the reference.", autocompletion=complete_run
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Stages")(report)
    app.command(rich_help_panel="Inspect")(compare)


def report(
    file: File,
    output: Output = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it on this machine, and follow the run until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve. 0: any that is free.")] = 0,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Also write every figure to this folder, as CSV and PNG.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="With --figures: light on dark.")] = False,
    json: Json = False,
) -> None:
    """Draws report.html and the model card again from what the run directory holds."""
    from merit.cli.console import complain, say, say_json
    from merit.context import RunContext

    if serve and (figures or json):
        raise InputError("a report that is served writes no files", field="--serve")
    run = RunContext.open(file, output=output).run
    if serve:
        _serve(run.root, port)
        return
    from merit.report.build import build_report
    from merit.report.card import write_run_card

    path = str(build_report(run.root))
    write_run_card(run.root)
    found: dict[str, object] = {"run": str(run.root), "report": path}
    if figures:
        from merit.report.export import export_figures

        exported = export_figures(run.root, figures, theme="dark" if dark else "light")
        found["figures"] = [str(item) for item in exported.files]
        if exported.without_pictures:
            complain(exported.without_pictures)
    if json:
        say_json(found)
    else:
        say(path)
        if figures:
            say(f"{len(exported.files)} files in {figures}")


def compare(
    runs: Runs,
    output: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
    json: Json = False,
) -> None:
    """Runs side by side: settings that differ, partitions, results with paired intervals, cost."""
    from merit.cli.console import print_table, say, say_json
    from merit.report.compare import build_comparison

    found = build_comparison(runs, output)
    if json:
        say_json({"page": str(output), **found.as_json()})
        return
    for rows in found.tables:
        print_table(rows)
    for note in found.notes:
        say(note)
    say(str(output))


def _serve(root: Path, port: int) -> None:
    """Until Ctrl-C, which is how it is meant to end."""
    from merit.cli.console import say
    from merit.report.serve import ReportServer

    asked = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        asked.set()

    with ReportServer(root, port) as server:
        before = signal.signal(signal.SIGINT, end)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            say(f"{server.url}  (Ctrl-C ends it)")
            asked.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            server.shutdown()
            thread.join()
