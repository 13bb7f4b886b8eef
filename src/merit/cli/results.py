"""Prints what a run has found so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.base.record import Record
from merit.cli.console import print_table, say, say_json
from merit.conflict.explain import Carrier, Explanation, Pair
from merit.conflict.similarity import ConflictResult
from merit.data.mixture import Mixture
from merit.evaluate.scores import Table
from merit.report.evidence import read_evidence
from merit.report.table import table_rows
from merit.report.verdict import reach_verdict
from merit.run.layout import RunDir
from merit.split.evidence import AxesEvidence
from merit.split.partition import Partition


def print_results(run: RunDir, what: str | None, *, json: bool) -> None:
    """The results table after a whole run; after one stage, that stage's result; or the `explanation`."""
    if json:
        say_json(_as_json(run, what))
        return
    show = {"mixture": _mixture, "conflict": _conflict, "split": _split, "explanation": _explanation}.get(
        what or "", _table
    )
    show(run)
    say(f"report: {run.report}")


def _table(run: RunDir) -> None:
    if not run.table.exists():
        return
    table = Table.load(run.table)
    rows = table_rows(table)
    # What each model is, then time, tokens and distance: the measurements stay.
    print_table(rows, legend=[index for title in _BELOW if (index := _column(rows, title)) is not None])
    for note in table.notes:
        say(note)
    if (meaning := headline(run)) is not None:
        say(meaning)


_BELOW = ("", "training", "tokens", "‖θ − θ0‖", "wall clock", "bytes moved")


def _column(rows: list[list[str]], title: str) -> int | None:
    return rows[0].index(title) if title in rows[0] else None


def headline(run: RunDir) -> str | None:
    """The report's first sentence: what the table means. None where there is nothing to compare."""
    verdict = reach_verdict(read_evidence(run.root))
    return verdict.headline if verdict is not None else None


def _mixture(run: RunDir) -> None:
    rows = [["dataset", "train", "held out", "supervised tokens", "truncated"]]
    for item in Mixture.load(run.mixture).datasets:
        counts = item.train.examples, item.held_out.examples, item.train.supervised_tokens, item.truncated
        rows.append([item.name, *(f"{count:,}" for count in counts)])
    print_table(rows)


def _conflict(run: RunDir) -> None:
    if not run.conflict.exists():
        say("there is only one dataset, so there is no conflict to measure")
        return
    result = ConflictResult.load(run.conflict)
    rows = [["dataset", "examples", "loss at θ0", "gradient norm", "reliability"]]
    for name, *figures in zip(
        result.names, result.examples, result.losses, result.norms, result.reliability, strict=True
    ):
        rows.append([name, str(figures[0]), *("–" if item is None else f"{item:.3f}" for item in figures[1:])])
    print_table(rows)
    for note in result.notes:
        say(note)


def _explanation(run: RunDir) -> None:
    if not run.explanation.exists():
        say(
            "hashed sketches cannot be explained layer by layer; leave out `calibration.hashed`"
            if run.conflict.exists()
            else "there is only one dataset, so there is no conflict to measure"
        )
        return
    found = Explanation.load(run.explanation)
    print_table([["these fight most", "cosine", "centred"], *map(_pair, found.pairs)])
    if found.duplicates:
        print_table([["nearly the same gradient", "cosine", "centred"], *map(_pair, found.duplicates)])
    for end in found.axes:
        say(f"PC{end.axis + 1} ({end.share:.0%}): {', '.join(end.low)}  ↔  {', '.join(end.high)}")
    axes = [f"of PC{k + 1}" for k in range(len(found.axes))]
    for title, carriers in (("kind of module", found.kinds), ("layer", found.layers)):
        print_table([[title, "of the conflict", *axes], *map(_carrier, carriers)])


def _pair(pair: Pair) -> list[str]:
    return [f"{pair.first} ↔ {pair.second}", f"{pair.cosine:+.3f}", f"{pair.centred:+.3f}"]


def _carrier(carrier: Carrier) -> list[str]:
    return [carrier.name, *(f"{share:.1%}" for share in (carrier.share, *carrier.axes))]


def _split(run: RunDir) -> None:
    rows = [["group", "tokens", "datasets"]]
    partition = Partition.load(run.method().partition)
    for k, group in enumerate(partition.groups):
        rows.append([str(k), f"{group.tokens:,}", ", ".join(group.datasets)])
    print_table(rows)
    for cut in partition.cuts:
        if cut.note:
            say(cut.note)
    if run.axes_evidence.exists():
        say(AxesEvidence.load(run.axes_evidence).words(len(partition.groups)))


def _as_json(run: RunDir, what: str | None) -> dict[str, Any]:
    files: dict[str, tuple[Path, type[Record]]] = {
        "mixture": (run.mixture, Mixture),
        "conflict": (run.conflict, ConflictResult),
        "split": (run.method().partition, Partition),
        "explanation": (run.explanation, Explanation),
    }
    path, kind = files.get(what or "", (run.table, Table))
    found = kind.load(path).model_dump(mode="json") if path.exists() else None
    return {"run": str(run.root), "report": str(run.report), "result": found}
