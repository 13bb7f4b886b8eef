"""Whether a record of a run can be drawn: its lists fit together, and its figures are of a possible size.

Once a record is loaded, its fields have the right types. What a type cannot say is checked here, right after loading.
Whatever drawing stumbles over later is therefore a fault of our own, and looks like one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.record import Record
from merit.conflict.axes import AxesResult
from merit.conflict.explain import Explanation
from merit.conflict.similarity import ConflictResult
from merit.data.mixture import Mixture
from merit.evaluate.scores import ModelScores
from merit.gate.step import GateResult
from merit.split.partition import Partition

LARGEST = 1e15  # no count, loss or time of a run comes near; sums and products of such figures stay finite


def refuse_misfit(record: Record, file: Path) -> None:
    """Checks a record that was loaded from `file`.

    Raises:
        InputError: it is damaged, or somebody made it up; names the file and the field.
    """
    for field, message in (*_sizes(record.model_dump(), ""), *_CHECKS.get(type(record), lambda _: ())(record)):
        raise InputError(f"damaged, or not of this run: {message}", file=file, field=field)


def plausible(value: Any) -> float | None:
    """A finite number of a possible size; None for everything else that JSON or YAML can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) <= LARGEST else None


def _sizes(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        yield field, f"{value:g} is too large for any figure of a run"
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _sizes(item, f"{field}.{key}" if field else str(key))


def _lengths(record: Record, fields: str, wanted: int, of: str, at: str = "") -> Iterator[tuple[str, str]]:
    for field in fields.split():
        if (length := len(getattr(record, field))) != wanted:
            yield at + field, f"has {length} entries for {wanted} {of}"


def _below_zero(values: Iterable[float], field: str) -> Iterator[tuple[str, str]]:
    if any(value < 0 for value in values):
        yield field, "is below zero"


def _conflict(found: ConflictResult) -> Iterator[tuple[str, str]]:
    fields = "examples tokens norms losses reliability noise"
    yield from _lengths(found, fields, len(found.names), "datasets")


def _axes(found: AxesResult) -> Iterator[tuple[str, str]]:
    yield from _lengths(found, "scores directions", len(found.names), "datasets")
    widths = {len(row) for row in found.scores}
    if len(widths) > 1 or not widths <= set(range(1, len(found.eigenvalues) + 1)):
        yield "scores", f"has rows of {sorted(widths)} axes, of {len(found.eigenvalues)} eigenvalues"


def _explanation(found: Explanation) -> Iterator[tuple[str, str]]:
    for field in ("layers", "kinds"):
        for carrier in getattr(found, field):
            yield from _lengths(carrier, "axes", len(found.axes), "axes", f"{field}.")


def _mixture(found: Mixture) -> Iterator[tuple[str, str]]:
    for item in (*found.datasets, *found.unseen):
        yield from _below_zero((item.weight, item.train.supervised_tokens), f"datasets.{item.name}")


def _partition(found: Partition) -> Iterator[tuple[str, str]]:
    yield from _below_zero([cut.axis for cut in found.cuts], "cuts.axis")


def _gate(found: GateResult) -> Iterator[tuple[str, str]]:
    yield from _lengths(found, "tokens branch_displacement", len(found.branch_losses), "pilots")
    if not found.barriers:
        yield "barriers", "is empty"


def _scores(found: ModelScores) -> Iterator[tuple[str, str]]:
    drift = [found.drift] if found.drift else []
    for field, scores in (("in_mixture", found.in_mixture), ("unseen", found.unseen), ("drift", drift)):
        for score in scores:
            yield from _lengths(score, "tokens", len(score.losses), "losses", f"{field}.")
            yield from _below_zero(score.tokens, f"{field}.tokens")
            if not any(score.tokens):
                yield f"{field}.tokens", "holds no supervised token"


_CHECKS: dict[type[Record], Callable[[Any], Iterable[tuple[str, str]]]] = {
    ConflictResult: _conflict,
    AxesResult: _axes,
    Explanation: _explanation,
    Mixture: _mixture,
    Partition: _partition,
    GateResult: _gate,
    ModelScores: _scores,
}
