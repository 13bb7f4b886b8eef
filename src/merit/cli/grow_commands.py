"""`merit add` and `merit remove`: a dataset more or less, without training everything again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merit.cli.completion import complete_dataset
from merit.cli.options import Json, Run

if TYPE_CHECKING:
    from merit.context import RunContext
    from merit.train.grow import Cost

Baselines = Annotated[bool, typer.Option("--baselines", help="Also train the baselines on the new mixture.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Branches")(add)
    app.command(rich_help_panel="Branches")(remove)


def add(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A data file, a Hub id, or reasoning_gym:NAME.")],
    name: Annotated[str, typer.Argument(help="The dataset's name in the mixture.")],
    weight: Annotated[float, typer.Option(help="Sets `mixture.NAME.weight`.")] = 1.0,
    max_examples: Annotated[int | None, typer.Option(help="Sets `mixture.NAME.max_examples`.")] = None,
    baselines: Baselines = False,
    json: Json = False,
) -> None:
    """Adds a dataset: places it on the saved axes, retrains its branch, then merges again."""
    from merit.config.sections import DatasetConfig
    from merit.train.grow import add_dataset

    path = str(Path(source).resolve()) if Path(source).exists() else source
    dataset = DatasetConfig(path=path, weight=weight, max_examples=max_examples)
    _grow(run, lambda context, go: add_dataset(context, name, dataset, go, baselines=baselines), json=json)


def remove(
    run: Run,
    name: Annotated[str, typer.Argument(help="The dataset's name in the mixture.", autocompletion=complete_dataset)],
    baselines: Baselines = False,
    json: Json = False,
) -> None:
    """Removes a dataset: retrains its branch without it, then merges again."""
    from merit.train.grow import remove_dataset

    _grow(run, lambda context, go: remove_dataset(context, name, go, baselines=baselines), json=json)


def _grow(run: Path, change: Callable[[RunContext, Callable[[RunContext], None]], Cost], *, json: bool) -> None:
    from merit.cli.console import say, say_json, show_progress
    from merit.context import RunContext

    with show_progress() as progress:
        context = RunContext.open(run, progress=progress)
        from merit.cli.results import print_results
        from merit.pipeline import run_pipeline

        cost = change(context, run_pipeline)
    if json:
        say_json(cost.__dict__)
        return
    print_results(context.run, None, json=False)
    share = cost.tokens / cost.all_tokens if cost.all_tokens else 0.0
    names = ", ".join(map(str, cost.branches)) or "none"
    say(
        f"trained again: branch {names}, {cost.tokens:,} supervised tokens; all branches would be {cost.all_tokens:,} "
        f"({share:.0%} of that)"
    )
    if cost.dropped:
        say(f"dropped, since they knew another mixture: {', '.join(cost.dropped)}; --baselines trains them again")
