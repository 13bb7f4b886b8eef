"""Group Inspect: `merit compare`, `agree`, `study`, `advise`, `benchmark`, `theory`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merit.base.errors import InputError
from merit.cli.options import Json, complete_run

if TYPE_CHECKING:
    from merit.study.spec import Study

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN RUN …", help="Run directories; the first is the reference.", autocompletion=complete_run
    ),
]


def compare(
    runs: Runs,
    output: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
    json: Json = False,
) -> None:
    """Compares runs: differing settings, partitions, results with paired intervals, cost."""
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


Measured = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory with measured conflict.", autocompletion=complete_run),
]


def agree(
    reference: Measured,
    other: Measured,
    axes: Annotated[
        int | None, typer.Option(min=1, max=10, help="Axes to cut along. Default: the first run's.")
    ] = None,
    json: Json = False,
) -> None:
    """Compares the conflict of two runs on their common datasets: a proxy model with θ0, a sketch with full gradients,
    few examples with many."""
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


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE|STUDY", help="A study file, or an earlier study's directory.")],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory. Default: runs/NAME beside FILE.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Only this budget; may be repeated.")] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Run nothing; write tables and figures of finished jobs.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Run nothing; write the scores of measured methods, without weights, to FOLDER."
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Scores that `--export` wrote: what they hold is not measured again. Default: scores/ beside FILE.",
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(hidden=True, help="SEED:BUDGET, as an executor starts it.")] = None,
    json: Json = False,
) -> None:
    """Compares methods at equal tokens over seeds, with intervals."""
    if job is not None:
        _job(file, job)
        return
    if scores is not None and not scores.is_dir():
        raise InputError("no such folder", file=scores, field="--scores")
    from merit.cli.console import say, say_json, show_progress
    from merit.study.scores import BESIDE, adopt_scores
    from merit.study.spec import Study

    with show_progress() as progress:
        opened = Study.open(file, output=output)
        if export is not None:
            _export(opened, export, json)
            return
        if scores is None and (opened.base / BESIDE).is_dir():
            scores = opened.base / BESIDE
        if tables and scores is not None:
            adopt_scores(opened, scores, progress, verify=False)
        if not tables:
            from merit.cli.run_commands import JOBS_IMPORT
            from merit.jobs.nursery import enable
            from merit.study.run import run_study

            enable((*JOBS_IMPORT, "merit.study.job", "merit.study.warmup"))
            run_study(opened, progress, seeds=seed, budgets=budget, scores=scores)
        from merit.study.tables import publish

        result = publish(opened)
    if json:
        say_json({"study": str(opened.dir.root), "results": result.model_dump(mode="json")})
        return
    from merit.base.words import plural
    from merit.cli.console import print_table
    from merit.study.tables import budget_title, main_table

    seeds, budgets = plural(len(result.seeds), "seed"), "budget" if len(result.budgets) == 1 else "budgets"
    say(f"{result.name}: {seeds}, {budgets} {', '.join(result.budgets)}")
    for note in result.notes:
        say(note)
    for name in result.budgets:
        say(f"{budget_title(result, name)}:")
        rows = main_table(result, name)
        print_table(rows, legend=[rows[0].index(title) for title in _BELOW if title in rows[0]])
    say(f"tables and figures: {opened.dir.results}")


_CHOICES = ("choice, in-mixture", "choice, unseen", "choice, retention")
# Columns of a study's table that make room for the losses.
_BELOW = ("‖θ−θ0‖", "tokens", "bytes", "drift", "exact", *_CHOICES)


def _export(study: Study, folder: Path, json: bool) -> None:
    from merit.base.words import plural
    from merit.cli.console import say, say_json
    from merit.study.scores import export_scores

    count = export_scores(study, folder)
    if json:
        say_json({"scores": str(folder), "methods": count})
    else:
        say(f"{folder}: the scores of {plural(count, 'method')} (each seed and budget counts)")


def _job(root: Path, text: str) -> None:
    from merit.cli.console import show_messages
    from merit.study.run import run_init, run_job

    number, _, budget = text.partition(":")
    if text != "init" and (not number.isdigit() or not budget):
        raise InputError(f"{text!r} is neither SEED:BUDGET nor init", field="--job")
    show_messages()
    if text == "init":
        run_init(root)
    else:
        run_job(root, int(number), budget)


def advise(
    folder: Annotated[Path, typer.Argument(metavar="STUDY|RUN", help="A study's directory, or a run's.")],
    prefer: Annotated[
        str | None, typer.Option(help="Your trade-off, e.g. in_mixture=2,unseen=1,retention=1. Default: equal.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Budget of a study. Default: the last.")] = None,
    json: Json = False,
) -> None:
    """Recommends one of the trained models, and says what it gives up."""
    from merit.cli.console import say, say_json
    from merit.evaluate.scores import Table
    from merit.run.layout import RunDir
    from merit.study.advice import advise_run, advise_study, parse_trade_off
    from merit.study.results import Results
    from merit.study.spec import StudyDir

    weights = parse_trade_off(prefer)
    # Committed results hold results.json alone, without the rest of the study.
    for file in (StudyDir(folder).table, folder / "results.json"):
        if file.is_file():
            advice = advise_study(Results.load(file), weights, budget)
            break
    else:
        if not RunDir(folder).table.is_file():
            raise InputError("neither a study with results nor an evaluated run", file=folder)
        advice = advise_run(Table.load(RunDir(folder).table), weights)
    if json:
        best = {"label": advice.best.label, "losses": dict(advice.best.losses), "weights": dict(advice.weights)}
        say_json({"best": best, "lines": advice.lines})
        return
    for line in advice.lines:
        say(line)


def benchmark(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, such as RUN/merged.")],
    tasks: Annotated[
        str,
        typer.Option(help="Comma-separated; `published` is all eight of the paper, `merit_local` needs no network."),
    ] = "merit_local",
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples per task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass; recorded as a setting.")] = 8,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let HumanEval run what the model writes.")] = False,
    json: Json = False,
) -> None:
    """Scores a model on the published text benchmarks through lm-eval, with all settings printed."""
    from merit.cli.console import print_table, say, say_json
    from merit.evaluate.benchmarks import PUBLISHED, run_benchmarks
    from merit.models.source import check_model_folder

    check_model_folder(model, trust_remote_code=False)
    names = list(PUBLISHED) if tasks == "published" else [name.strip() for name in tasks.split(",") if name.strip()]
    found = run_benchmarks(model, names, limit=limit, batch_size=batch_size, allow_code=allow_code)
    if json:
        say_json([item.model_dump(mode="json") for item in found])
        return
    rows = [["benchmark", "score", "±", "chance", "examples"]]
    for item in found:
        error = "–" if item.standard_error is None else f"{item.standard_error:.3f}"
        chance = "–" if item.chance is None else f"{item.chance:.2f}"
        rows.append([item.name, f"{item.value:.3f}", error, chance, f"{item.examples:,}"])
    print_table(rows)
    for item in found:
        say(f"{item.name}: {', '.join(f'{key} {value}' for key, value in item.settings.items())}")


def theory(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random instances.")] = 0,
    instances: Annotated[int, typer.Option(min=1, max=10_000, help="Random instances per check.")] = 60,
    axes: Annotated[int, typer.Option(min=1, max=3, help="r: compare splits with 2^r groups.")] = 1,
    json: Json = False,
) -> None:
    """Tests the paper's theorems on quadratic tasks, and shows their limits. Needs no run or model."""
    from merit.cli.console import print_table, say, say_json
    from merit.theory.lab import lab_rows, lab_sentences, run_lab
    from merit.theory.splits import split_rows

    result = run_lab(seed=seed, instances=instances, axes=axes)
    if json:
        say_json(result.model_dump(mode="json"))
        return
    print_table(lab_rows(result))
    say("")
    print_table(split_rows(result.splits))
    for sentence in lab_sentences(result):
        say(sentence)
