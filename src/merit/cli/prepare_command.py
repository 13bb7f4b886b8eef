"""`merit prepare`: makes θ0 merge-ready, and says whether it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from merit.cli.options import File, Json, Output, Redo

if TYPE_CHECKING:
    from merit.context import RunContext
    from merit.diagnose.gate import GateResult


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Stages")(prepare)


def prepare(file: File, output: Output = None, redo: Redo = False, json: Json = False) -> None:
    """Trains θ0 jointly until it is merge-ready, then a pilot of every branch: go or no-go. Resumes."""
    from merit.cli.console import say, say_json, show_progress
    from merit.config.sections import GateConfig, PrepareConfig
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(file, output=output, progress=progress)
        config = context.config
        # The answer is printed here, whatever it is.
        gate = (config.gate or GateConfig()).model_copy(update={"enforce": False})
        update = {"gate": gate, "prepare": config.prepare or PrepareConfig()}
        context.config = config.model_copy(update=update)
        from merit.pipeline import run_pipeline

        run_pipeline(context, start="prepare" if redo else None, until="gate")
    found = _result(context)
    if json:
        say_json({"run": str(context.run.root), "model": str(context.model.path), "gate": found and found.model_dump()})
    else:
        _print(context, found, file, asked=config.prepare is not None)
        say(f"model: {context.model.path}")
    if found is not None and not found.ready:
        raise typer.Exit(1)


def _result(context: RunContext) -> GateResult | None:
    from merit.diagnose.gate import GateResult

    return GateResult.load(context.run.gate_record) if context.run.gate_record.is_file() else None


def _print(context: RunContext, found: GateResult | None, file: Path, *, asked: bool) -> None:
    from merit.cli.console import print_table, say

    if found is None:
        say("one branch: no merge to try out")
        return
    rows = [["model", "held-out loss", "‖θ − θ0‖", "tokens"], ["θ0", f"{found.base_loss:.3f}", "–", "–"]]
    for k, loss in enumerate(found.branch_losses):
        rows.append([f"pilot {k}", f"{loss:.3f}", f"{found.branch_displacement[k]:.3f}", f"{found.tokens[k]:,}"])
    rows.append(["merge", f"{found.merged_loss:.3f}", f"{found.displacement:.3f}", f"{sum(found.tokens):,}"])
    print_table(rows)
    worst = found.worst
    say(f"highest barrier: {worst.barrier:.4f} nats, between {worst.a} and {worst.b}")
    for line in found.advice:
        say(line)
    say("ready" if found.ready else "not ready")
    if found.ready and not asked:
        say(f"add `prepare: {{}}` to {file}: `merit run` then starts from the prepared model")
