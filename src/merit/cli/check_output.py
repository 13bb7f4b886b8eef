"""Shows what `merit check` found."""

from __future__ import annotations

from merit.cli.console import complain, print_table, say, say_json
from merit.data.check import CheckReport
from merit.data.mixture import Rendered

_MARK = ("⟦", "⟧")


def print_report(report: CheckReport, *, json: bool) -> bool:
    """Prints the report: counts and examples on stdout, problems on stderr. Returns whether a run can start."""
    if json:
        say_json(report.model_dump(mode="json"))
    else:
        _print_counts(report)
        _print_examples(report)
        for dataset in report.datasets:
            for warning in dataset.warnings:
                say(f"{dataset.name}: {warning}")
        for warning in report.warnings:
            say(warning)
    for line in report.problems:
        complain(line)
    if report.ok and not json:
        say("ready to run")
    return report.ok


def _print_counts(report: CheckReport) -> None:
    rows = [["dataset", "format", "train", "held out", "supervised tokens", "tokens: half", "90%", "longest", "cut"]]
    for dataset in report.datasets:
        item = dataset.summary
        if item is None:
            rows.append([dataset.name, *["–"] * 8])
            continue
        lengths = [f"{item.length_quantiles[key]:,}" for key in ("0.5", "0.9", "1.0")]
        counts = [item.train.examples, item.held_out.examples, item.train.supervised_tokens]
        name = item.name + (" (unseen)" if dataset.unseen else "")
        rows.append([name, item.format, *(f"{count:,}" for count in counts), *lengths, f"{item.truncated:,}"])
    print_table(rows)


def _print_examples(report: CheckReport) -> None:
    """Three examples as the model sees them, from as many datasets as there are."""
    found = [item.summary for item in report.datasets if item.summary is not None and not item.unseen]
    shown = [(item.name, item.rendered[0]) for item in found if item.rendered][:3]
    if not shown:
        return
    say(f"Examples as the model sees them; {_MARK[0]}what carries loss{_MARK[1]}:")
    for name, rendered in shown:
        say(f"── {name}")
        say(_marked(rendered))


def _marked(rendered: Rendered) -> str:
    whole = "".join(f"{_MARK[0]}{text}{_MARK[1]}" if loss else text for text, loss in rendered.pieces)
    return "\n".join(line if len(line) <= 400 else f"{line[:400]} …" for line in whole.split("\n"))
