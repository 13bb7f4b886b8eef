"""Group Run: `merit run`, `demo`, `push`."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base.errors import InputError
from merit.base.extensions import names
from merit.base.machine import total_memory, usable_cores
from merit.cli.options import File, Json, Output, Run

if TYPE_CHECKING:
    from merit.context import RunContext
    from merit.push.contents import Contents


def run(
    file: File,
    output: Output = None,
    start: Annotated[str | None, typer.Option("--from", help="Redo this stage and all later ones.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge the finished branches if others fail for good.")
    ] = False,
    deadline: Annotated[str | None, typer.Option(help="With --partial: longest training time, e.g. 90m or 8h.")] = None,
    json: Json = False,
) -> None:
    """Runs all stages: mixture, conflict, split, train, merge, evaluate, report. Resumes; skips what is done."""
    limit = _seconds(deadline) if deadline is not None else None
    if limit is not None and not partial:
        raise InputError("a deadline is for a partial run; add --partial", field="--deadline")
    execute(file, output, Part(start, until, partial, limit), json=json)


@dataclass(frozen=True)
class Part:
    """The part of the pipeline that a command runs.

    Attributes:
        start: redo this stage and all later ones.
        until: stop after this stage.
        partial: merge the finished branches if others fail for good.
        seconds: longest training time of a partial run.
    """

    start: str | None = None
    until: str | None = None
    partial: bool = False
    seconds: float | None = None


@contextlib.contextmanager
def open_run(file: Path, output: Path | None = None) -> Iterator[RunContext]:
    """The run of a configuration or of a run directory, with bars while the context lasts.

    The terminal is imported after the configuration has proved to be right: a misspelt key is told at once.
    """
    from merit.context import RunContext
    from merit.jobs.nursery import enable

    enable(JOBS_IMPORT)
    early, logger = MemoryHandler(100, flushLevel=sys.maxsize), logging.getLogger("merit")
    if not logger.handlers:
        logger.addHandler(early)
    try:
        context = RunContext.open(file, output=output)
    finally:
        logger.removeHandler(early)
    from merit.cli.console import show_progress

    with show_progress() as context.progress:
        for record in early.buffer:  # what the configuration said before there was a terminal
            logger.handle(record)
        yield context


def execute(file: Path, output: Path | None, part: Part, *, json: bool, show: str | None = None) -> None:
    """Runs the pipeline with bars, and prints what came of it: `show`, or else the result of stage `part.until`."""
    with open_run(file, output) as context:
        context.partial = part.partial
        context.deadline = time.time() + part.seconds if part.seconds is not None else None
        from merit.cli.results import print_results
        from merit.pipeline import run_pipeline

        run_pipeline(context, start=part.start, until=part.until)
    print_results(context.run, show or part.until, json=json)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise InputError(f"{text!r} is no length of time; write 90m, 8h or 2d", field="--deadline")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


# What the jobs of a run import: branches, workers of conflict and evaluation.
JOBS_IMPORT = (
    "merit.cli.stage_commands",
    "merit.cli.console",
    "merit.conflict.step",
    "merit.gradients.collect",
    "merit.evaluate.measure",
    "merit.evaluate.answers",
    "merit.train.branch",
    "merit.train.curvature",
)
_LAUNCH = {
    "ray": "launch: {{engine: ray, parallel: {jobs}, ray: {{cpus: {cores}}}}}\n",
    "slurm": "launch: {{engine: slurm, parallel: {jobs}, slurm: {{cpus: {cores}, minutes: 30}}}}\n",
}
_LAUNCH_OTHER = "launch: {{engine: {engine}, parallel: {jobs}}}\n"
_JOB_BYTES = 6e9  # training 135M parameters in float32 takes 4.2 GB
_MOST_JOBS = 4


def demo(
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. Default: runs/demo.")] = None,
    engine: Annotated[str, typer.Option(help=f"Where branches train: {', '.join(names('engines'))}.")] = "local",
    json: Json = False,
    config: Annotated[bool, typer.Option("--config", help="Print the demo's configuration instead.")] = False,
    vision: Annotated[bool, typer.Option("--vision", help="Train a vision-language model from scratch.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use four tasks and few examples, to see that it works.")
    ] = False,
) -> None:
    """Runs a built-in example: SmolLM2-135M on twelve task families; MERIT with two merges, as published, and joint
    training. With `--vision`: a tiny model that first learns to see, on eleven tasks about pictures."""
    if quick and vision:
        raise InputError("the demo with pictures has no quick form", field="--quick")
    source = resources.files("merit.cli").joinpath("demo_vision.yaml" if vision else "demo.yaml")
    text = source.read_text(encoding="utf-8")
    if quick:
        text = _quick(text)
    output = output or Path("runs/demo-vision" if vision else "runs/demo")
    if config:
        from merit.cli.console import say_as_is

        say_as_is(text.rstrip())
        return
    if engine not in names("engines"):
        raise InputError(f"no engine {engine!r}; there are: {', '.join(names('engines'))}", field="--engine")
    # The same number of threads a job on every engine: the same sums, hence the same table.
    jobs = _jobs(usable_cores(), total_memory())
    text += _LAUNCH.get(engine, _LAUNCH_OTHER).format(engine=engine, jobs=jobs, cores=usable_cores() // jobs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.yaml"
        file.write_text(text, encoding="utf-8")
        execute(file, output, Part(), json=json)
    if vision and not json:
        _print_accuracy(output)


def _jobs(cores: int, memory: float) -> int:
    """Branches at once. Two jobs of one thread train a third faster than one of two, where the memory suffices."""
    return int(max(1, min(cores, memory // _JOB_BYTES, _MOST_JOBS)))


def _quick(text: str) -> str:
    """The same demo with a third of the tasks, few examples of each and joint training alone to compare with."""
    import yaml

    values = yaml.safe_load(text)
    values["mixture"] = {name: item | {"max_examples": 10} for name, item in [*values["mixture"].items()][::3]}
    values["calibration"] = {"examples": 4}
    values["baselines"] = {"joint": {"splitter": "single"}}
    unseen = dict([*values["evaluate"]["unseen"].items()][:1])
    values["evaluate"] |= {"held_out": 3, "generate": 1, "max_new_tokens": 8, "drift": 2, "unseen": unseen}
    return yaml.safe_dump(values, sort_keys=False)


def _print_accuracy(output: Path) -> None:
    """Right answers on held-out pictures, task by task, against one who always says the most frequent answer."""
    from merit.cli.console import print_table, say
    from merit.demo.visual import TASKS
    from merit.evaluate.scores import ModelScores
    from merit.run.layout import RunDir

    run = RunDir(output)
    labels = {"θ0": "base", "merge": "merit", "joint": "joint"}
    scores = {title: ModelScores.load(run.evaluation(label)).in_mixture for title, label in labels.items()}
    rows = [["right answers", "chance", *labels]]
    for index, name in enumerate(item.name for item in scores["merge"]):
        shares = [_share(scores[title][index].exact) for title in labels]
        rows.append([name, f"{TASKS[name].chance:.0%}", *(f"{share:.0%}" for share in shares)])
    print_table(rows)
    learned = sum(_share(item.exact) > TASKS[item.name].chance + 0.2 for item in scores["merge"])
    say(f"{learned} of {len(rows) - 1} tasks lie more than 20 points above chance")


def _share(exact: list[float] | None) -> float:
    return sum(exact) / len(exact) if exact else 0.0


def push(
    run: Run,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORGANISATION/NAME on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list what it would upload.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    model_only: Annotated[
        bool, typer.Option("--model-only", help="Leave out report, configuration, groups and table.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="License for the card, e.g. apache-2.0.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Merged with merit",
    json: Json = False,
) -> None:
    """Uploads a merged model (a run's, or any folder) to the Hub. First checks it, its card, and for secrets."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.push.contents import check_contents, gather
    from merit.push.hub import check_repo, push_items

    check_repo(repo)
    with show_progress() as progress:
        contents = gather(run, model_only=model_only)
        contents, notes = check_contents(contents, license=license, progress=progress)
    if not json:
        print_table(_rows(contents))
        for note in notes:
            say(f"· {note}")
    url = None
    if not dry_run:
        with show_progress():
            url = push_items(
                contents.items,
                repo,
                message=message,
                private=not public,
                revision=revision,
                pull_request=pull_request,
            )
    if json:
        files = [{"file": item.name, "bytes": item.size} for item in contents.items]
        left = [item.model_dump() for item in contents.left_out]
        say_json({"repo": repo, "private": not public, "files": files, "left_out": left, "notes": notes, "url": url})
    else:
        say(url or f"nothing was sent; without --dry-run this goes to {repo}, {'public' if public else 'private'}")


def _rows(contents: Contents) -> list[list[str]]:
    rows = [["file", "bytes", ""], *([item.name, f"{item.size:,}", ""] for item in contents.items)]
    rows += [[item.name, "–", f"not uploaded: {item.reason}"] for item in contents.left_out]
    return [*rows, ["together", f"{sum(item.size for item in contents.items):,}", ""]]
