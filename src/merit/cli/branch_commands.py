"""Group Branches: `merit status`, `logs`, `cancel`, `handover`, `adopt`, `add`, `remove`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import Branch, File, Json, Method, Output, Redo, Run, complete_dataset
from merit.cli.run_commands import open_run

if TYPE_CHECKING:
    from merit.context import RunContext
    from merit.run.layout import RunDir
    from merit.train.add_remove import Cost
    from merit.train.watch import BranchStatus


_SECONDS = 2.0


def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every two seconds.")] = False,
    json: Json = False,
) -> None:
    """Shows each branch: its state, progress and machine. Works on any machine that sees RUN."""
    from merit.cli.console import print_table, say, say_json, watch_tables
    from merit.run.layout import RunDir
    from merit.train.watch import run_status

    if watch and not json:
        watch_tables(lambda: _rows(run_status(RunDir(run))), _SECONDS)
        return
    found = run_status(RunDir(run))
    if json:
        say_json([item.__dict__ for item in found])
        return
    rows = _rows(found)
    print_table(rows, legend=[len(rows[0]) - 1])
    for line in _summary(RunDir(run), found):
        say(line)


def logs(
    run: Run,
    branch: Branch,
    method: Method = "merit",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the branch is done.")] = False,
) -> None:
    """Shows the output of a branch, in all its rounds."""
    from merit.cli.console import say_as_is
    from merit.run.guard import require_run, unplanned
    from merit.train.spec import BranchSpec

    found = require_run(run)
    home = found.method(method)
    if not home.planned(branch):
        raise unplanned(found, method, branch, "`merit train` plans branches")
    seen: Counter[Path] = Counter()  # bytes that have been shown
    while True:
        folders = home.planned(branch)
        done = [folder.done.is_file() for folder in folders]  # before its output is read: then that is the whole
        for folder, whole in zip(folders, done, strict=True):
            if text := _more(folder.output, seen, whole=whole or not follow):
                say_as_is(text)
        if not follow or (folders and all(done) and BranchSpec.load(folders[-1].spec).is_last):
            return
        time.sleep(_SECONDS)


def _more(file: Path, seen: Counter[Path], *, whole: bool) -> str:
    """What a file has after what was `seen` of it; only its finished lines, unless `whole`."""
    if not file.is_file():
        return ""
    with file.open("rb") as handle:
        handle.seek(seen[file])
        data = handle.read()
    data = data if whole else data[: data.rfind(b"\n") + 1]
    seen[file] += len(data)
    return data.decode("utf-8", errors="replace").rstrip("\n")


def cancel(run: Run) -> None:
    """Ends the run's jobs, on any engine. Their last checkpoints stay."""
    from merit.base.words import plural
    from merit.cli.console import say
    from merit.run.layout import RunDir
    from merit.train.watch import cancel_run

    count = cancel_run(RunDir(run))
    told = f"{plural(count, 'job was', 'jobs were')} told to end; run again to resume"
    say(told if count else "no job is queued or running")


def _summary(run: RunDir, found: list[BranchStatus]) -> list[str]:
    """How many branches are in each state; of a finished run also what came out, and where."""
    from merit.base.words import count, plural, series

    states = Counter(item.state for item in found)
    done = states["done"] == len(found)
    numbers = series([f"{count(n)} {state}" for state, n in states.most_common()])
    lines = [f"{plural(len(found), 'branch', 'branches')}: {numbers}"]
    if not done or not run.table.is_file():
        return lines + ([f"`merit run {run.root}` goes on from here"] if done else [])
    from merit.cli.results import headline

    places = {"merged": run.method().merged(), "report": run.report}
    told = [f"{name}: {path}" for name, path in places.items() if path.exists()]
    return [*lines, *filter(None, [headline(run)]), *told]


def _rows(found: list[BranchStatus]) -> list[list[str]]:
    """A row a branch. What no branch has, is no column; nor is what only matters while branches train, once all are
    done."""
    rows = _all_rows(found)
    idle = {"of", "job", "where", "start"} if all(item.state == "done" for item in found) else set()
    shown = [
        index
        for index, title in enumerate(rows[0])
        if title not in idle and any(row[index] not in ("", "–") for row in rows[1:])
    ]
    return [[row[index] for index in shown] for row in rows]


def _all_rows(found: list[BranchStatus]) -> list[list[str]]:
    rows = [["branch", "state", "steps", "of", "job", "where", "start", "", "datasets"]]
    for item in found:
        rows.append(
            [
                f"{item.method} {item.branch}" + (f" round {item.round}" if item.round is not None else ""),
                item.state,
                f"{item.done:g}" if item.total else "–",
                f"{item.total:g}" if item.total else "–",
                f"{item.engine} {item.job}".strip()[:28],
                item.where,
                str(item.attempt or "–"),
                item.note,
                ", ".join(item.datasets),
            ]
        )
    return rows


TRAINERS = ("trl", "axolotl", "llamafactory")


def handover(
    file: File,
    to: Annotated[str, typer.Option(help=f"{', '.join(TRAINERS)}.", autocompletion=lambda: list(TRAINERS))],
    output: Output = None,
    method: Method = "merit",
    json: Json = False,
) -> None:
    """Writes a folder per branch for another trainer: configuration, data, one command. Splits first."""
    if to not in TRAINERS:
        raise InputError(f"no trainer {to!r}; there are: {', '.join(TRAINERS)}", field="--to")
    from merit.cli.console import say, say_json

    with open_run(file, output) as context:
        from merit.handover.write import hand_over
        from merit.pipeline import run_pipeline

        run_pipeline(context, until="split")
        folders = hand_over(context, to, method)
    if json:
        say_json([str(folder) for folder in folders])
        return
    for folder in folders:
        say(str(folder))
    if folders:
        say("each README.md has the one command to run, and the one that brings the branch back")


def adopt(
    run: Run,
    branch: Branch,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The trainer's output, or the hand-over's folder.")],
    method: Method = "merit",
    tokens: Annotated[int | None, typer.Option(min=1, help="Supervised tokens that it trained on.")] = None,
    any_budget: Annotated[bool, typer.Option("--any-budget", help="Accept a budget far from the plan.")] = False,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Checks a branch that another trainer trained, and puts it into the run."""
    from merit.cli.console import say, say_json

    with open_run(run) as context:
        from merit.handover.adopt import adopt_branch

        result = adopt_branch(context, method, branch, folder, tokens=tokens, any_budget=any_budget, redo=redo)
    if json:
        say_json(result.model_dump(mode="json"))
    else:
        say(f"{method} branch {branch}: adopted, {result.supervised_tokens:,} supervised tokens; `merit run` merges it")


Baselines = Annotated[bool, typer.Option("--baselines", help="Also train the baselines on the new mixture.")]


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
    from merit.train.add_remove import add_dataset

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
    from merit.train.add_remove import remove_dataset

    _grow(run, lambda context, go: remove_dataset(context, name, go, baselines=baselines), json=json)


def _grow(run: Path, change: Callable[[RunContext, Callable[[RunContext], None]], Cost], *, json: bool) -> None:
    from merit.cli.console import say, say_json

    with open_run(run) as context:
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
