"""What a diagnostic is. Each file in `checks/`, or in your own `merit_ext/checks/`, holds one, named `CHECK`.

The report and the configuration read these files, so none of them imports torch at the top: a check's `run` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import Sealed
from merit.config.sections import Section
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench

R = TypeVar("R", bound=CheckResult)
Row = list[str]


@dataclass(frozen=True)
class Reading:
    """The words around a figure.

    Attributes:
        found: what this run shows.
        read: how to read the figure, in one sentence; empty where there is none.
        published: what the paper reports, as the end of "Published: …".
    """

    found: str
    read: str = ""
    published: str = "no figure of this kind"


@dataclass(frozen=True, kw_only=True)
class Part(Generic[R]):
    """A question that the report answers from a check's result.

    Attributes:
        title: the question.
        reading: the answer; None where this result has none.
        figure: draws the answer with `merit.report.drawing`. The report lends that module, so that no check imports it.
    """

    title: str
    reading: Callable[[R], Reading | None]
    figure: Callable[[R, ModuleType], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Check(Part[R]):
    """A diagnostic.

    Attributes:
        result: the record in diagnostics/NAME.json.
        run: measures it. `bench.settings` and `bench.journal` are those of this check.
        rows: the lines of the table: quantity, found, published.
        uses: keys of the section `diagnose` that the result depends on.
        depends: what else it depends on: JSON values or pydantic models.
        settings: its own settings, `diagnose.settings.NAME`, all with defaults.
        also: further questions that the same result answers.
        tracked: the figures that trackers get, by name.
        order: checks run, and are reported, in this order.
    """

    result: type[R]
    run: Callable[[Bench], R]
    rows: Callable[[R], list[Row]]
    uses: Sequence[str] = ()
    depends: Callable[[Bench], Sequence[Any]] = lambda bench: ()
    settings: type[Section] | None = None
    also: Sequence[Part[R]] = ()
    tracked: Callable[[R], Mapping[str, float]] = lambda result: {}
    order: int = 100


class _Pieces(Sealed):
    """The file: finished pieces by name."""

    fingerprint: str
    done: dict[str, Any]


class Journal:
    """What a long check has measured so far, in a JSON file: a kill costs only the piece being measured.

    Pieces are those of one fingerprint. Without a path, nothing is kept on disk.
    """

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._path = path
        found = kept(path, _Pieces, {"fingerprint": fingerprint}).record if path is not None else None
        self._pieces = found or _Pieces(fingerprint=fingerprint, done={})

    @property
    def fingerprint(self) -> str:
        """What the pieces depend on."""
        return self._pieces.fingerprint

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece `name`, a JSON value: the one that is kept, or one measured and kept now."""
        done = self._pieces.done
        if name not in done:
            done[name] = measure()
            if self._path is not None:
                self._pieces.save(self._path)
        return done[name]

    def close(self) -> None:
        """Removes the file, once the result is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def find_check(name: str) -> Check[Any]:
    """The check of this name.

    Raises:
        InputError: there is no such check, or its file cannot be imported or holds none.
    """
    found = extensions.load("checks", name)
    if not isinstance(found, Check):
        raise InputError("CHECK is not a merit.diagnose.check.Check", file=extensions.files("checks")[name])
    return found


def all_checks() -> dict[str, Check[Any]]:
    """Every check by name, in the order of running.

    Raises:
        InputError: as `find_check`.
    """
    found = {name: find_check(name) for name in extensions.names("checks")}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def result_rows(results: Mapping[str, CheckResult]) -> list[Row]:
    """Header and rows: check, quantity, what was found, what the paper reports. Brackets are 95% intervals."""
    rows: list[Row] = [["check", "quantity", "found [95%]", "published"]]
    for name, result in results.items():
        rows += [[name, *row] for row in find_check(name).rows(result)]
    return rows
