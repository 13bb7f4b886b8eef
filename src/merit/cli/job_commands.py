"""`merit train` and `merit merge`: a stage of a run, or one piece of work on its own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from merit.base import extensions
from merit.base.errors import InputError
from merit.cli.completion import complete_branch, complete_file_or_run
from merit.cli.options import Json, Method, Output, Redo, refuse_given
from merit.cli.run_commands import execute

_OF_CHECKPOINTS = ("weights", "scale", "base", "dtype", "adapter", "partial", "stochastic", "keep_sums", "memory")
_OF_WHOLE_MODELS = ("scale", "dtype", "partial", "stochastic", "keep_sums", "memory")
_AS_CONFIGURED = "a run is merged as its configuration says (section `merge`); this option is for checkpoints"


def _rules() -> str:
    with contextlib.suppress(InputError):  # said by every command that reads a configuration
        return ", ".join(extensions.names("rules"))
    return "see `merit schema`"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Stages")(train)
    app.command(rich_help_panel="Stages")(merge)


def train(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RUN|URL",
            help="A configuration, a run, or a run's store.",
            autocompletion=complete_file_or_run,
        ),
    ],
    output: Output = None,
    branch: Annotated[
        int | None,
        typer.Option(
            min=0, help="Train this branch only; RUN must hold its spec.json.", autocompletion=complete_branch
        ),
    ] = None,
    method: Method = "merit",
    processes: Annotated[int, typer.Option(min=1, help="With --branch: devices to train it on.")] = 1,
    accelerate: Annotated[
        Path | None, typer.Option(help="With --branch: an accelerate configuration (FSDP2, DeepSpeed).")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="With --branch: θ0's folder on this machine.")] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Trains the branches. With --branch: trains one of them, as an engine's job does."""
    if branch is None:
        refuse_given(context, "method", "processes", "accelerate", "model", why="is for one branch's job; add --branch")
        execute(Path(file), output, start="train" if redo else None, until="train", json=json)
        return
    from merit.cli.console import say, say_json, show_messages
    from merit.train.job import Ranks, run_branch_job

    show_messages()
    if "://" in file:
        from merit.train.staging import run_remote_branch_job

        options = ["--processes", str(processes)] if processes > 1 else []
        options += ["--accelerate", str(accelerate)] if accelerate is not None else []
        result = run_remote_branch_job(file, method, branch, options)
    else:
        result = run_branch_job(Path(file), method, branch, Ranks(processes, accelerate), model)
    if json:
        say_json(result.model_dump(mode="json"))
        return
    loss = f", loss {result.final_loss:.4f}" if result.final_loss is not None else ""
    say(f"{method} branch {branch}: {result.supervised_tokens:,} supervised tokens, {result.steps:,} steps{loss}")


def merge(
    context: typer.Context,
    inputs: Annotated[list[str], typer.Argument(metavar="FILE|RUN | MODEL MODEL …", help="A run, or checkpoints.")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the merged model.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help=f"1,2,3, or a rule ({_rules()}); then `;REGEX=0,1,0` for tensors apart."),
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="β of θ0 + β(merge − θ0); may be repeated.")] = None,
    base: Annotated[str | None, typer.Option(help="θ0, for --scale and for the figures.")] = None,
    dtype: Annotated[str, typer.Option(help="input, float32, bfloat16 or float16.")] = "input",
    adapter: Annotated[
        str | None,
        typer.Option(help="Merge LoRA folders into one: `exact`, or cut to this rank. Default: whole weights."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out missing inputs.")] = False,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Round at random, without bias.")] = False,
    keep_sums: Annotated[
        Path | None, typer.Option(help="Keep the running sums here, to add or remove a branch later.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for all buffers, e.g. 1GB. Default: 512MB.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the merge in OUT instead of making it.")] = False,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Merges the branches of a run; or any checkpoints of one model: merit merge A B C -o OUT."""
    path = Path(inputs[0])
    if not verify and len(inputs) == 1 and _is_run(path):
        refuse_given(context, *_OF_CHECKPOINTS, why=_AS_CONFIGURED)
        execute(path, output, start="merge" if redo else None, until="merge", json=json)
        return
    refuse_given(context, "redo", why="is for a run; to merge checkpoints again, name another --out")
    if verify:
        refuse_given(context, *_OF_CHECKPOINTS, why="a merge is verified as its own record says it was made")
    elif len(inputs) == 1 and path.suffix in (".yaml", ".yml"):
        refuse_given(context, "weights", "scale", "base", "dtype", why="a recipe says this itself; change it there")
    if adapter is not None:
        refuse_given(context, *_OF_WHOLE_MODELS, why="is for whole models; leave out --adapter, or this")
    from merit.cli.console import say, show_progress
    from merit.cli.merge_command import merge_models

    with show_progress() as progress:
        lines = merge_models(
            inputs,
            weights=weights,
            output=output,
            scale=scale or [1.0],
            base=base,
            dtype=dtype,
            memory=memory,
            verify=verify,
            json_out=json,
            adapter=adapter,
            partial=partial,
            stochastic=stochastic,
            keep_sums=keep_sums,
            progress=progress,
        )
    for line in lines:
        say(line)


def _is_run(path: Path) -> bool:
    """Whether `path` is a run or its configuration, not a checkpoint or a mergekit recipe."""
    if path.suffix not in (".yaml", ".yml"):
        return (path / "config.yaml").is_file()
    try:
        return not any(line.startswith("merge_method:") for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return True  # the configuration's reader says what is wrong with it
