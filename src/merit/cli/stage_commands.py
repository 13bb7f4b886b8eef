"""Group Stages: `merit prepare`, `conflict`, `split`, `train`, `merge`, `evaluate`, `diagnose`, `report`."""

from __future__ import annotations

import contextlib
import difflib
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base import extensions
from merit.base.errors import InputError
from merit.cli.options import (
    File,
    Json,
    Method,
    Output,
    Precision,
    Redo,
    Worker,
    complete_branch,
    complete_file_or_run,
    refuse_given,
)
from merit.cli.run_commands import Part, execute, open_run

if TYPE_CHECKING:
    from merit.context import RunContext
    from merit.gate.step import GateResult


def prepare(file: File, output: Output = None, redo: Redo = False, json: Json = False) -> None:
    """Trains θ0 jointly until it is merge-ready, then a pilot of every branch: go or no-go. Resumes."""
    from merit.cli.console import say, say_json
    from merit.config.sections import GateConfig, PrepareConfig

    with open_run(file, output) as context:
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
    from merit.gate.step import GateResult

    return GateResult.load(context.run.gate_record) if context.run.gate_record.is_file() else None


def _print(context: RunContext, found: GateResult | None, file: Path, *, asked: bool) -> None:
    from merit.cli.console import print_table, say
    from merit.report.sections.basin import pilot_table

    if found is None:
        say("there is only one branch, so there is no merge to test")
        return
    table = pilot_table(found)
    print_table([[*table.header], *([*row] for row in table.rows)])
    worst = found.worst
    say(f"highest barrier: {worst.barrier:.4f} nats, between {worst.a} and {worst.b}")
    for line in found.advice:
        say(line)
    say("ready" if found.ready else "not ready")
    if found.ready and not asked:
        say(f"add `prepare: {{}}` to {file}: `merit run` then starts from the prepared model")


def _stage(name: str, file: Path, output: Path | None, redo: bool, *, json: bool, show: str | None = None) -> None:
    """Runs the pipeline up to a stage, and redoes that stage if it is asked to."""
    execute(file, output, Part(name if redo else None, name), json=json, show=show)


_CONFIGURED = "is for a worker; without --worker it is `{}` in the configuration"


def conflict(
    context: typer.Context,
    file: File,
    output: Output = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which pairs conflict, in which layers, and each axis.")
    ] = False,
    worker: Worker = None,
    examples: Annotated[
        int | None, typer.Option(min=2, help="With --worker: calibration examples per dataset.")
    ] = None,
    precision: Precision = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measures which datasets conflict: gradients at θ0, similarity, axes."""
    if worker is not None:
        from merit.cli.console import show_messages
        from merit.conflict.step import run_worker

        show_messages()
        run_worker(file, worker, examples, precision)
        return
    refuse_given(context, "examples", why=_CONFIGURED.format("calibration.examples"))
    refuse_given(context, "precision", why=_CONFIGURED.format("train.precision"))
    _stage("conflict", file, output, redo, json=json, show="explanation" if explain else None)


def split(file: File, output: Output = None, redo: Redo = False, json: Json = False) -> None:
    """Cuts the mixture into groups. Measures conflict first."""
    _stage("split", file, output, redo, json=json)


def evaluate(
    context: typer.Context,
    file: File,
    output: Output = None,
    worker: Worker = None,
    answers: Annotated[
        str | None, typer.Option(help="Let vLLM answer for the model of this name. merit starts such jobs itself.")
    ] = None,
    precision: Precision = None,
    engine: Annotated[str | None, typer.Option(help="With --worker: hf or vllm, as in the main process.")] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Evaluates every model of the run. Merges first."""
    if worker is not None or answers is not None:
        from merit.cli.console import show_messages
        from merit.evaluate.measure import run_answer_job, run_worker

        show_messages()
        if answers is not None:
            run_answer_job(file, answers, precision)
        elif worker is not None:
            run_worker(file, worker, precision, engine)
        return
    refuse_given(context, "precision", why=_CONFIGURED.format("train.precision"))
    refuse_given(context, "engine", why=_CONFIGURED.format("evaluate.engine"))
    _stage("evaluate", file, output, redo, json=json)


_OF_MERGES = ("device", "dtype", "keep_sums", "memory", "partial", "scale", "stochastic")
_OF_FOLDERS = ("adapter", "base", "weights", *_OF_MERGES)
_OF_CHECKPOINTS = (*_OF_FOLDERS, "rule", "ridge")
_OF_WHOLE_MODELS = ("rule", "ridge", *_OF_MERGES)
_AS_CONFIGURED = "a run is merged as its configuration says (section `merge`); this option is for checkpoints"


def _rules() -> str:
    with contextlib.suppress(InputError):  # said by every command that reads a configuration
        return ", ".join(extensions.names("rules"))
    return "see `merit schema`"


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
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="With --branch: a round before the last.")
    ] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Trains the branches. With --branch: trains one of them, as an engine's job does."""
    if branch is None:
        only = ("method", "processes", "accelerate", "model", "number")
        refuse_given(context, *only, why="is for one branch's job; add --branch")
        _stage("train", Path(file), output, redo, json=json)
        return
    from merit.cli.console import say, say_json, show_messages
    from merit.train.job import Ranks, run_branch_job

    show_messages()
    if "://" in file:
        from merit.train.staging import run_remote_branch_job

        options = ["--processes", str(processes)] if processes > 1 else []
        options += ["--accelerate", str(accelerate)] if accelerate is not None else []
        result = run_remote_branch_job(file, method, branch, options, number)
    else:
        result = run_branch_job(Path(file), method, branch, Ranks(processes, accelerate), model, number)
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
    rule: Annotated[
        str | None,
        typer.Option(
            help=f"A rule ({_rules()}): of folders, with --base; of a finished run, merges its branches once more."
        ),
    ] = None,
    ridge: Annotated[float | None, typer.Option(help="With --rule: the pull toward the average.")] = None,
    device: Annotated[
        str | None, typer.Option(help="With --rule: solves linear layers here, e.g. cuda. Default: the processor.")
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="β of θ0 + β(merge − θ0); may be repeated.")] = None,
    base: Annotated[str | None, typer.Option(help="θ0, for --rule, --scale and the figures.")] = None,
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
        refuse_given(context, *_OF_FOLDERS, why=_AS_CONFIGURED)
        if rule is None:
            refuse_given(context, "ridge", why="is for one more merge of a run; name its --rule")
        else:
            refuse_given(context, "output", "redo", why="is not for one more merge of a run; leave it out")
            _merge_once_more(path, rule, ridge, json=json)
            return
        _stage("merge", path, output, redo, json=json)
        return
    refuse_given(context, "redo", why="is for a run; to merge checkpoints again, name another --out")
    if verify:
        refuse_given(context, *_OF_CHECKPOINTS, why="a merge is verified as its own record says it was made")
    elif len(inputs) == 1 and path.suffix in (".yaml", ".yml"):
        refuse_given(
            context, "weights", "rule", "scale", "base", "dtype", why="a recipe says this itself; change it there"
        )
    if adapter is not None:
        refuse_given(context, *_OF_WHOLE_MODELS, why="is for whole models; leave out --adapter, or this")
    from merit.cli.console import say, say_as_is, show_progress
    from merit.cli.merge_command import Merging, merge_models, verify_models

    wanted = Merging(
        output=output,
        weights=weights,
        scale=scale or [1.0],
        base=base,
        dtype=dtype,
        rule=rule,
        ridge=ridge,
        device=device,
        adapter=adapter,
        partial=partial,
        stochastic=stochastic,
        keep_sums=keep_sums,
        memory=memory,
    )
    with show_progress() as progress:
        result = verify_models(inputs, output, progress) if verify else merge_models(inputs, wanted, progress)
    if json:
        say_as_is(result.record.model_dump_json())
        return
    for line in result.lines:
        say(line)


def _merge_once_more(path: Path, rule: str, ridge: float | None, *, json: bool) -> None:
    if not path.is_dir():
        raise InputError(
            f"is for a run directory; here, add `merge: {{also: [{rule}]}}` to {path}, and `merit run` it",
            field="--rule",
        )
    with open_run(path) as context:
        from merit.merge.also import add_merge

        method, found = add_merge(context, rule, ridge)
    from merit.cli.console import say, say_json

    folders = [str(method.dir.merged(scale)) for scale in method.config.scales]
    if json:
        merge = found.model_dump(mode="json", include={"weights", "displacement", "branch_displacement", "left_out"})
        say_json({"run": str(path), "method": method.name, "folders": folders, "merge": merge})
        return
    say(f"merged {len(found.weights)} branches by {rule}, as {method.name}: {', '.join(folders)}")
    say(f"`merit evaluate {path}` measures it")


def _is_run(path: Path) -> bool:
    """Whether `path` is a run or its configuration, not a checkpoint or a mergekit recipe."""
    if path.suffix not in (".yaml", ".yml"):
        return (path / "config.yaml").is_file()
    try:
        return not any(line.startswith("merge_method:") for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return True  # the configuration's reader says what is wrong with it


def _known() -> str:
    try:
        return ", ".join(extensions.names("checks"))
    except InputError as error:  # `merit --help` must work all the same
        return f"none: {error}"


def diagnose(
    file: File,
    output: Output = None,
    checks: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {_known()}. Default: the run's, or all.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="One round of a run with rounds, from what it started from.")
    ] = None,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Checks θ0, branches and merge of a finished run: barriers, displacement, gain, flatness, curvature."""
    from merit.cli.console import print_table, say, say_json
    from merit.diagnose.check import all_checks, result_rows

    with open_run(file, output) as context:
        wanted = pick_checks(checks) or context.config.diagnose.checks or list(all_checks())
        from merit.diagnose.step import diagnose_run

        results = diagnose_run(context, wanted, redo=redo, number=number)
    from merit.diagnose.verdict import verdict

    reached = verdict(results)
    if json:
        found = {name: result.model_dump(mode="json") for name, result in results.items()}
        say_json({"run": str(context.run.root), "results": found, "verdict": reached.model_dump(mode="json")})
        return
    print_table(result_rows(results))
    say(reached.headline)
    for reason in reached.reasons:
        say(f"  {reason}")
    say(f"report: {context.run.report}" if number is None else f"results: {context.run.diagnostics}/round-{number:02d}")


def pick_checks(text: str | None) -> list[str]:
    """The checks named in a comma-separated list.

    Raises:
        InputError: one of them is unknown.
    """
    names = extensions.names("checks")
    found: list[str] = []
    for word in (text or "").split(","):
        name = word.strip()
        if name in names:
            found.append(name)
        elif name:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the checks are {', '.join(names)}"
            raise InputError(f"no check {name!r}; {hint}", field="--checks")
    return list(dict.fromkeys(found))


def report(
    file: File,
    output: Output = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve it on this machine and follow the run, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve. 0: any free port.")] = 0,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Also write every figure to this folder, as CSV and PNG.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="With --figures: light on dark.")] = False,
    json: Json = False,
) -> None:
    """Writes report.html and the model card again, from the run directory."""
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
