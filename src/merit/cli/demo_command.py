"""`merit demo`: the main job on the embedded model and mixture."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from merit.base.errors import InputError
from merit.base.extensions import names
from merit.base.machine import total_memory, usable_cores
from merit.cli.options import Json
from merit.cli.run_commands import execute

_LAUNCH = {
    "ray": "launch: {{engine: ray, parallel: {jobs}, ray: {{cpus: {cores}}}}}\n",
    "slurm": "launch: {{engine: slurm, parallel: {jobs}, slurm: {{cpus: {cores}, minutes: 30}}}}\n",
}
_LAUNCH_OTHER = "launch: {{engine: {engine}, parallel: {jobs}}}\n"
_JOB_BYTES = 6e9  # training 135M parameters in float32 takes 4.2 GB
_MOST_JOBS = 4


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Run")(demo)


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
    """Runs a built-in example: SmolLM2-135M on twelve task families; MERIT, joint, WiSE-FT and a random split. With
    `--vision`: a tiny model that first learns to see, on eleven tasks about pictures."""
    if quick and vision:
        raise InputError("the demo with pictures has no quick form", field="--quick")
    source = resources.files("merit.cli").joinpath("demo_vision.yaml" if vision else "demo.yaml")
    text = source.read_text(encoding="utf-8")
    if quick:
        text = _quick(text)
    output = output or Path("runs/demo-vision" if vision else "runs/demo")
    if config:
        from merit.cli.console import say

        say(text.rstrip())
        return
    if engine not in names("engines"):
        raise InputError(f"no engine {engine!r}; there are: {', '.join(names('engines'))}", field="--engine")
    # The same number of threads a job on every engine: the same sums, hence the same table.
    jobs = _jobs(usable_cores(), total_memory())
    text += _LAUNCH.get(engine, _LAUNCH_OTHER).format(engine=engine, jobs=jobs, cores=usable_cores() // jobs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.yaml"
        file.write_text(text, encoding="utf-8")
        execute(file, output, start=None, until=None, json=json)
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
