"""What trackers get of the merge: figures by round, from the run's JSON."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from merit.base.errors import InputError
from merit.context import Method, RunContext
from merit.diagnose.check import all_checks
from merit.diagnose.step import make_bench
from merit.evaluate.scores import Table
from merit.merge.step import MethodMerge

_ROW = ("in_mixture", "exact", "unseen", "drift", "displacement", "supervised_tokens", "bytes_moved", "machine_seconds")
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", flags=re.ASCII)  # MLflow refuses them


def figures(context: RunContext) -> dict[int, dict[str, float]]:
    """Round → name → figure. Names are `QUANTITY/MODEL`, so that trackers draw all models of a quantity together.

    θ0 is round 0. A method's last round has its merge, its branches, and what `merit diagnose` found.

    Raises:
        InputError: the run is not evaluated, or a record is damaged.
    """
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for number, name, value in _all(context):
        if value is not None:
            found[number][_NOT_IN_NAMES.sub("_", name)] = value
    return dict(sorted(found.items()))


def _all(context: RunContext) -> Iterator[tuple[int, str, float | None]]:
    yield from _of_table(context)
    for method in context.methods:
        for one in [*([] if method.source else method.before), method]:
            yield from _of_merge(one)
    for name, value in _of_checks(context):
        yield context.methods[0].rounds, name, value


def _of_table(context: RunContext) -> Iterator[tuple[int, str, float | None]]:
    last = {method.name: method.rounds for method in context.methods}
    for row in Table.load(context.run.table).rows:
        number, label = last.get(row.method, 0), row.label
        if row.kind == "round":  # on the curve of its method
            number, label = int(row.label.rsplit("-", 1)[1]), row.method
        yield from ((number, f"{quantity}/{label}", getattr(row, quantity)) for quantity in _ROW)


def _of_merge(method: Method) -> Iterator[tuple[int, str, float]]:
    record = MethodMerge.load(method.dir.merge_record)
    merged = [k for k in range(len(record.weights) + len(record.left_out)) if k not in record.left_out]
    for k, weight, distance in zip(merged, record.weights, record.branch_displacement, strict=True):
        yield method.round, f"weight/{method.name}/branch-{k:02d}", weight
        yield method.round, f"displacement/{method.name}/branch-{k:02d}", distance
    for scale, error in record.rounding_error.items():
        yield method.round, f"rounding_error/{method.name if scale == '1' else f'{method.name}@{scale}'}", error


def _of_checks(context: RunContext) -> Iterator[tuple[str, float]]:
    """The figures of those checks that were run on the present models."""
    there = {name: check for name, check in all_checks().items() if context.run.diagnostic(name).is_file()}
    if not there:
        return
    try:
        bench = make_bench(context)
    except InputError:  # those models are gone
        return
    for name, check in there.items():
        if (result := bench.stored(name)) is not None:
            yield from ((f"{name}/{quantity}", value) for quantity, value in check.tracked(result).items())
