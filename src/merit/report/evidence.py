"""Everything that a report can draw on, read from a run directory. Missing files are None; damaged ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.files import read_json
from merit.base.record import Record, whole
from merit.config.run import also_name, trained_by
from merit.config.yaml import read_yaml
from merit.conflict.axes import AxesResult
from merit.conflict.explain import Explanation
from merit.conflict.similarity import ConflictResult, load_similarity
from merit.data.mixture import Mixture
from merit.evaluate.drift import DriftSet
from merit.evaluate.scores import ModelScores, Table
from merit.gate.step import GateResult
from merit.report.fit import LARGEST, plausible, refuse_misfit
from merit.run.events import read_events
from merit.run.layout import MAIN_METHOD, BranchDir, MethodDir, RunDir
from merit.split.evidence import AxesEvidence
from merit.split.partition import Partition
from merit.split.splitter import known_splitter
from merit.train.spec import BranchResult

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class BranchEvidence:
    """One branch: how it trained, and what came out."""

    index: int
    log: Sequence[LogLine]
    result: BranchResult | None
    checkpoint_bytes: int


@dataclass(frozen=True)
class MethodEvidence:
    """One method: the main one, or a baseline."""

    name: str
    partition: Partition | None
    branches: Sequence[BranchEvidence]
    weights: Sequence[float]  # of the branches in the merge; empty where nothing is merged
    merging: Sequence[float] = ()  # seconds of its merges, round after round; the last one's is last

    @property
    def results(self) -> list[BranchResult]:
        """Of the branches that are trained."""
        return [branch.result for branch in self.branches if branch.result]

    @property
    def finished(self) -> bool:
        """Whether it has branches, and all are trained."""
        return 0 < len(self.branches) == len(self.results)

    @property
    def told_branches(self) -> str:
        """How many branches are trained: "4", or "3 of 4"."""
        done = len(self.results)
        return str(done) if done == len(self.branches) else f"{done} of {len(self.branches)}"

    @property
    def checkpoint_bytes(self) -> int:
        """Of the weights of the largest branch."""
        return max((branch.checkpoint_bytes for branch in self.branches), default=0)

    @property
    def is_joint(self) -> bool:
        """One branch on everything: joint training."""
        return self.partition is not None and known_splitter(self.partition.splitter).one_group


@dataclass(frozen=True)
class FurtherMerge:
    """A method that trains nothing: another merge of a method's branches."""

    name: str
    branches: str  # whose
    rule: str | None  # None: the run's own


@dataclass
class Reader:
    """Reads records, and keeps what went wrong in words."""

    root: Path
    problems: list[str] = field(default_factory=list)

    def record(self, kind: type[R], path: Path) -> R | None:
        """The record at `path`; None if there is none, or if it cannot be read.

        Raises:
            InputError: it can be read, and makes no sense.
        """
        found = self.attempt(path, kind.load)
        if found is not None:
            refuse_misfit(found, path)
        return found

    def attempt(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of the file at `path`; None if there is none, or if it cannot be read."""
        if not path.exists():
            return None
        try:
            return read(path)
        except InputError as error:
            self.problem(path, error.message + (f" (`{error.field}`)" if error.field else ""))
            return None

    def problem(self, path: Path, message: str) -> None:
        """Notes that `path` is left out of the report."""
        self.problems.append(f"`{path.relative_to(self.root).as_posix()}` is left out: {message}")


@dataclass(frozen=True)
class Evidence:
    """A run as its files tell it."""

    run: RunDir
    config_text: str | None
    config: dict[str, Any]
    mixture: Mixture | None
    conflict: ConflictResult | None
    axes: AxesResult | None
    similarity: NDArray[np.float64] | None
    explanation: Explanation | None
    axes_evidence: AxesEvidence | None
    gate: GateResult | None
    methods: Sequence[MethodEvidence]  # those that train, the main one first
    merges: Sequence[FurtherMerge]
    table: Table | None
    scores: Sequence[ModelScores]
    drift: DriftSet | None
    events: Sequence[dict[str, Any]]
    problems: Sequence[str]

    @property
    def rivals(self) -> list[str]:
        """All methods but the main one and θ0, always in this order: a method has one colour in all figures."""
        rows = self.table.rows if self.table else []
        names = [*(method.name for method in self.methods[1:]), *(row.method for row in rows)]
        return [name for name in dict.fromkeys(names) if name not in ("base", MAIN_METHOD)]

    @property
    def main(self) -> MethodEvidence:
        return self.methods[0]

    @property
    def joint(self) -> MethodEvidence | None:
        """Joint training, if the run has it."""
        return next((method for method in self.methods if method.is_joint), None)

    @property
    def versions(self) -> dict[str, str]:
        found = self.config.get("versions")
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def read_evidence(root: Path) -> Evidence:
    """Reads whatever is there. A run that is half done, or half damaged, is evidence too."""
    run = RunDir(root)
    reader = Reader(root)
    text, config = _config(reader, run.config)
    conflict = reader.record(ConflictResult, run.conflict)
    axes = reader.record(AxesResult, run.axes)
    names = conflict.names if conflict else axes.names if axes else []
    return Evidence(
        run=run,
        config_text=text,
        config=config,
        mixture=reader.record(Mixture, run.mixture),
        conflict=conflict,
        axes=axes,
        similarity=_similarity(reader, run.similarity, len(names)),
        explanation=reader.record(Explanation, run.explanation),
        axes_evidence=reader.record(AxesEvidence, run.axes_evidence),
        gate=reader.record(GateResult, run.gate_record),
        methods=[_method(reader, run, name) for name in [MAIN_METHOD, *_baselines(run, config)]],
        merges=_merges(config),
        table=reader.record(Table, run.table),
        scores=_scores(reader, run),
        drift=reader.record(DriftSet, run.drift),
        events=read_events(run.events),
        problems=reader.problems,
    )


def _config(reader: Reader, path: Path) -> tuple[str | None, dict[str, Any]]:
    found = reader.attempt(path, read_yaml)
    if found is None:
        return None, {}
    return path.read_text(encoding="utf-8"), found[0] if isinstance(found[0], dict) else {}


def _baselines(run: RunDir, config: dict[str, Any]) -> list[str]:
    """In the configuration's order; without one, whatever folders are there."""
    wanted = config.get("baselines")
    if isinstance(wanted, dict):
        further = {item.name for item in _merges(config)}
        return [str(name) for name in wanted if str(name) not in further and run.method(str(name)).root.is_dir()]
    folder = run.method("any").root.parent
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _merges(config: dict[str, Any]) -> list[FurtherMerge]:
    """What `merge.also` and the baselines with `branches` say, as far as it can be read."""
    merge, baselines = config.get("merge"), config.get("baselines")
    also = merge.get("also") if isinstance(merge, dict) else None
    rules = [rule for item in (also if isinstance(also, list) else []) if (rule := _rule(item)) is not None]
    found = [FurtherMerge(also_name(rule), MAIN_METHOD, rule) for rule in rules]
    for name, item in (baselines if isinstance(baselines, dict) else {}).items():
        if isinstance(item, dict) and isinstance(item.get("branches"), str):
            found.append(FurtherMerge(str(name), item["branches"], _rule(item.get("merge"))))
    known = dict.fromkeys([MAIN_METHOD, *map(str, baselines if isinstance(baselines, dict) else ())])
    known |= {item.name: item.branches for item in found}
    return [replace(item, branches=_trained_by(item, known)) for item in found]


def _trained_by(item: FurtherMerge, known: dict[str, str | None]) -> str:
    try:
        return trained_by(item.name, known)
    except ValueError:  # somebody has edited the file
        return item.branches


def _rule(item: Any) -> str | None:
    """The rule of a part of the configuration that is its name, or says it."""
    name = item.get("rule") if isinstance(item, dict) else item
    return name if isinstance(name, str) else None


def _method(reader: Reader, run: RunDir, name: str) -> MethodEvidence:
    method = run.method(name)
    partition = reader.record(Partition, method.partition)
    folders = len(partition.groups) if partition else 0
    merge = reader.attempt(method.merge_record, read_json)
    weights = merge.get("weights") if isinstance(merge, dict) else None
    weights = [plausible(weight) for weight in weights] if isinstance(weights, list) else []
    known = [weight for weight in weights if weight is not None]
    branches = [_branch(reader, method, k) for k in range(folders)]
    return MethodEvidence(
        name,
        partition,
        branches,
        weights=known if len(known) == len(weights) == folders else [],
        merging=_merging(reader, method),
    )


def _merging(reader: Reader, method: MethodDir) -> list[float]:
    rounds = [method.round(number).merge_record for number in range(1, len([*method.rounds.glob("*/merge.json")]) + 1)]
    found = [reader.attempt(record, read_json) for record in (*rounds, method.merge_record)]
    return [plausible(item.get("seconds")) or 0.0 if isinstance(item, dict) else 0.0 for item in found]


def _branch(reader: Reader, method: MethodDir, k: int) -> BranchEvidence:
    branch = method.branch(k)
    return BranchEvidence(k, read_log(branch.log), reader.record(BranchResult, branch.done), _checkpoint_bytes(branch))


def _checkpoint_bytes(branch: BranchDir) -> int:
    return sum(file.stat().st_size for file in branch.checkpoint.glob("*.safetensors"))


def _scores(reader: Reader, run: RunDir) -> list[ModelScores]:
    folder = run.table.parent
    others = (run.table, run.drift)
    files = sorted(path for path in folder.glob("*.json") if path not in others) if folder.is_dir() else []
    return [scores for path in files if (scores := reader.record(ModelScores, path)) is not None]


def _similarity(reader: Reader, path: Path, size: int) -> NDArray[np.float64] | None:
    matrix = reader.attempt(path, load_similarity) if size else None
    if matrix is None:
        return None
    if matrix.shape != (size, size):
        reader.problem(path, f"its shape is {matrix.shape}, not {(size, size)}")
        return None
    if not (np.abs(matrix) <= LARGEST).all():
        reader.problem(path, "it holds what is no cosine")
        return None
    return matrix


@dataclass(frozen=True)
class LogLine:
    """One logged step."""

    step: int
    loss: float
    supervised_tokens: int | None
    seconds: float | None


def read_log(path: Path) -> list[LogLine]:
    """The steps that have a finite loss, in order; a kill may have torn the last line, a resume repeated some."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines: dict[int, LogLine] = {}
    for raw in text.splitlines():
        try:
            value = json.loads(raw, parse_int=whole)
        except (ValueError, RecursionError):
            continue
        line = _line(value)
        if line is not None:
            lines[line.step] = line
    return [lines[step] for step in sorted(lines)]


def _line(value: Any) -> LogLine | None:
    if not isinstance(value, dict):
        return None
    step, loss = plausible(value.get("step")), plausible(value.get("loss"))
    if step is None or loss is None:
        return None
    tokens = plausible(value.get("supervised_tokens"))
    return LogLine(int(step), loss, None if tokens is None else int(tokens), plausible(value.get("seconds")))


@dataclass(frozen=True)
class Grouping:
    """Datasets in drawing order. `group` is None where there is no split yet, or where every branch has them all."""

    names: Sequence[str]
    group: dict[str, int | None]
    count: int

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(group, first position, last position) of the runs of one group in drawing order."""
        found: list[tuple[int, int, int]] = []
        for position, name in enumerate(self.names):
            k = self.group[name]
            if k is None:
                continue
            if found and found[-1][0] == k:
                found[-1] = (k, found[-1][1], position)
            else:
                found.append((k, position, position))
        return found


def group_label(k: int) -> str:
    """Groups are counted from 0, as the folders of their branches are."""
    return f"group {k}"


def find_grouping(evidence: Evidence, names: Sequence[str]) -> Grouping:
    """Groups one after the other, and within a group along the first axis, so that neighbours are alike."""
    partition = evidence.main.partition
    axes = evidence.axes
    first = dict(zip(axes.names, (row[0] if row else 0.0 for row in axes.scores), strict=False)) if axes else {}
    groups: dict[str, int | None] = dict.fromkeys(names)
    if partition and sum(len(group.datasets) for group in partition.groups) == len(partition.group_of):
        groups = {name: partition.group_of.get(name) for name in names}
    order = sorted(names, key=lambda name: (_last(groups[name]), first.get(name, 0.0), name))
    count = len({k for k in groups.values() if k is not None})
    return Grouping(order, groups, count)


def _last(k: int | None) -> tuple[bool, int]:
    return (k is None, k or 0)
