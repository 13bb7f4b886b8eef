"""`merit agree`: do two runs find the same conflict?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merit.cli.completion import complete_run
from merit.cli.options import Json

Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory whose conflict is measured.", autocompletion=complete_run),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Inspect")(agree)


def agree(
    reference: Run,
    other: Run,
    axes: Annotated[
        int | None, typer.Option(min=1, max=10, help="Axes to cut along. Default: the first run's.")
    ] = None,
    json: Json = False,
) -> None:
    """Compares the conflict of two runs on the datasets that both have: a proxy model against θ0, a sketch against
    full gradients, few examples against many."""
    from merit.cli.console import print_table, say_json
    from merit.split.agreement import compare_runs

    names, found = compare_runs(reference, other, axes=axes)
    if json:
        say_json({"datasets": names, **found.model_dump(mode="json")})
        return
    print_table(
        [
            [f"{len(names)} datasets", "agreement", "how to read it"],
            ["correlation of the cosines", f"{found.mantel_r:.3f}", f"Mantel's test, p = {found.mantel_p:.4f}"],
            ["adjusted Rand index", f"{found.adjusted_rand:.3f}", "of the two partitions: 1 the same, 0 chance"],
            ["conflict captured", f"{found.captured:.3f}", "of the first run's conflict, by the other's partition"],
        ]
    )
