"""A study's results, as one JSON file from which tables, figures and advice are made."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from pydantic import Field

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.machine import gpu_names, usable_cores
from merit.base.record import Record
from merit.config.run import versions
from merit.merge.traffic import FLOAT32, data_parallel, moved
from merit.split.splitter import find_splitter
from merit.study.compare import (
    AVERAGE,
    Bootstrap,
    Comparison,
    Contender,
    Interval,
    compare,
    contenders,
    difference,
    paired,
    shared_examples,
)
from merit.study.measure import FACES, Face, PointScores, Summary
from merit.study.question import Answer, QuestionResult, answers
from merit.study.run import is_whole, summary_so_far
from merit.study.spec import Study


class Row(Record):
    """A contender at one budget. Losses are on test examples; lower is better."""

    budget: str
    label: str  # merit-2d; merit-2d* is at the scale that validation chose; best:merit the best of a pool
    method: str | None  # None for θ0, for a pool's best and for the merge after a round that is not the last
    words: str
    passes: float  # training tokens, as a multiple of one joint run; 0 for θ0
    supervised_tokens: int  # mean over seeds
    faces: dict[str, Interval]
    average: Interval
    exact: float | None  # share of in-mixture examples that greedy decoding answers word for word
    choice: dict[str, Interval] = Field(default_factory=dict)  # face → share of right answers, multiple choice alone
    drift: float | None
    distance: float  # ‖θ − θ0‖, mean over seeds
    seconds: float  # of training, mean over seeds
    chosen: list[str]  # what validation chose, seed by seed; empty where there was nothing to choose
    branches: str | None = None  # the first method with the same branches; None where the row is of no one method
    bytes_moved: int | None = None  # between machines while it trains, mean over seeds; None for θ0
    machines: int = 1  # that train at once: one a branch, or those of data-parallel joint training
    batch: int = 1  # times the study's own
    steps: int = 0  # optimizer steps one after another, those of the longest branch; mean over seeds


class RayPoint(Record):
    """One point of a method's ray, mean over seeds."""

    scale: float
    faces: dict[str, float]  # test losses
    average: float
    validation: dict[str, float]  # what advice chooses by


class Ray(Record):
    """θ0 + β(θ − θ0) of one method at one budget, in order of β."""

    budget: str
    method: str
    points: list[RayPoint]


class Results(Record):
    """`results/results.json`."""

    name: str
    complete: bool
    seeds: list[int]
    budgets: list[str]
    budget_seeds: dict[str, list[int]] = Field(default_factory=dict)  # those that a budget's tables are of; unset: all
    parameters: int
    datasets: dict[str, int]  # face → datasets
    examples: dict[str, int]  # face → test examples a seed
    rows: list[Row]
    comparisons: list[Comparison]
    rays: list[Ray]
    answers: list[Answer]
    recommended_axes: list[int]  # what `axes: auto` took, seed by seed
    shared_examples: bool
    skipped: dict[str, str]
    notes: list[str]
    machine: dict[str, str]
    machines: int = 1  # on which joint training is counted as data-parallel: the most branches of a method

    def seeds_of(self, budget: str) -> list[int]:
        """The seeds that a budget's tables are of."""
        return self.budget_seeds.get(budget, self.seeds)


def collect(study: Study) -> Results:
    """The results of all jobs so far, budget by budget."""
    config = study.config
    found = {(s, b): summary_so_far(study, s, b) for s in config.seeds for b in config.budgets}
    by_budget = {b: largest_block([item for s in config.seeds if (item := found[s, b])]) for b in config.budgets}
    by_budget = {budget: items for budget, items in by_budget.items() if items}
    if not by_budget:
        raise InputError("this study has no results yet; run `merit study` on it first", file=study.dir.root)
    first = next(iter(by_budget.values()))[0]
    parameters = first.parameters
    machines = max(len(result.groups) for items in by_budget.values() for i in items for result in i.methods.values())
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    rays: list[Ray] = []
    for budget, items in by_budget.items():
        competing = contenders(study, items)
        rows += [
            _row(study, budget, item).model_copy(update=_effort(study, item, parameters, machines))
            for item in competing.values()
        ]
        comparisons += compare(study, budget, competing)
        known = shared_methods(items)
        rays += [_ray(study, budget, name, items) for name in config.methods if name in known]
    faces = PointScores.load(study.dir.point(first.base)).test
    asked = [kept(study.dir.question(seed), QuestionResult).record for seed in config.seeds]
    answered = [item for item in asked if item is not None]
    return Results(
        name=config.name,
        complete=all(item is not None and is_whole(study, item) for item in found.values()),
        seeds=sorted({item.seed for items in by_budget.values() for item in items}),
        budgets=list(by_budget),
        budget_seeds={budget: [item.seed for item in items] for budget, items in by_budget.items()},
        parameters=parameters,
        datasets={face: len(faces.face(face)) for face in FACES} if faces else {},
        examples={face: sum(len(s.losses) for s in faces.face(face)) for face in FACES} if faces else {},
        rows=rows,
        comparisons=comparisons,
        rays=rays,
        answers=answers(answered, draws=min(config.draws, 1000)),
        recommended_axes=[item.recommended_axes for item in answered],
        shared_examples=shared_examples(study),
        skipped={name: why for items in by_budget.values() for item in items for name, why in item.skipped.items()},
        notes=_notes(study, by_budget),
        machine=machine(study.base),
        machines=machines,
    )


def largest_block(found: Sequence[Summary]) -> list[Summary]:
    """The seeds of one budget to compare: those with which seeds × methods is largest.

    Methods are compared only if all these seeds have measured them. So an unfinished seed counts if it costs few
    methods, and is left out if it has just begun.
    """
    rated = sorted(found, key=lambda item: -len(item.methods))
    sizes = [count * len(shared_methods(rated[:count])) for count in range(1, len(rated) + 1)]
    kept = rated[: max(range(len(sizes)), key=lambda i: (sizes[i], i)) + 1] if max(sizes, default=0) else []
    return [item for item in found if item in kept]


def shared_methods(items: Sequence[Summary]) -> set[str]:
    """The methods that all of these jobs have measured."""
    return set.intersection(*(set(item.methods) for item in items))


def _row(study: Study, budget: str, item: Contender) -> Row:
    def interval(face: str) -> Interval:
        found = difference(study, item, None, face)
        return Interval(value=found.value, low=found.low, high=found.high)

    methods = [entry.method for entry in item.entries if entry.method is not None]
    points = [entry.point for entry in item.entries if entry.point is not None]
    return Row(
        budget=budget,
        label=item.label,
        method=item.method,
        words=item.words,
        passes=item.passes,
        supervised_tokens=round(item.share * float(np.mean([m.supervised_tokens for m in methods]))) if methods else 0,
        faces={face: interval(face) for face in item.faces if face != AVERAGE},
        average=interval(AVERAGE),
        exact=item.exact(),
        choice={face: found for face in FACES if (found := _right(study, item, face)) is not None},
        drift=item.drift(),
        distance=float(np.mean([point.distance for point in points])) if points else 0.0,
        seconds=item.share * float(np.mean([m.seconds for m in methods])) if methods else 0.0,
        chosen=item.choices,
        branches=study.config.trained_by(item.method) if item.method is not None else None,
    )


def _right(study: Study, item: Contender, face: Face) -> Interval | None:
    """The share of multiple-choice examples of which the model finds the right option the most likely."""
    if not (scores := item.right(face)):
        return None
    found = paired(scores, None, Bootstrap(shared_examples(study), study.config.draws))
    return Interval(value=found.value, low=found.low, high=found.high)


def _effort(study: Study, item: Contender, parameters: int, machines: int) -> dict[str, int]:
    """The fields of a row that tell machines, batch, steps and bytes. Nothing of θ0.

    Args:
        machines: on which joint training is counted as data-parallel where it does not say its own.
    """
    results = [entry.method for entry in item.entries if entry.method is not None]
    if not results:
        return {}
    size, bytes_moved = FLOAT32 * parameters, []
    for result in results:
        method = study.config.methods[result.name]
        if find_splitter(method.splitter).one_group:
            workers = method.machines if method.machines > 1 else machines
            bytes_moved.append(data_parallel(workers, result.steps[0], size))
        else:
            bytes_moved.append(moved(len(result.groups), round(method.rounds * item.share), size))
    batch = max(study.config.methods[result.name].machines for result in results)
    return {
        "machines": max(batch, *(len(result.groups) for result in results)),
        "batch": batch,
        "steps": round(item.share * float(np.mean([max(result.steps) for result in results]))),
        "bytes_moved": round(float(np.mean(bytes_moved))),
    }


def _ray(study: Study, budget: str, name: str, items: Sequence[Summary]) -> Ray:
    """A point for each scale that was measured on test examples in all seeds: the mean over seeds.

    The ridge is the one that validation chose. Only long rays, and the points of a table's rows, are measured on test
    examples.
    """
    results = [item.methods[name] for item in items]
    points = []
    for scale in sorted({point.scale for point in results[0].points}):
        found = [
            next(p for p in result.points if p.scale == scale and p.ridge == result.points[result.chosen].ridge)
            for result in results
        ]
        tests = [
            scores.test for point in found if (scores := PointScores.load(study.dir.point(point.mark))).test is not None
        ]
        if len(tests) == len(found):
            faces = _mean([test.losses for test in tests if test])
            validation = _mean([point.validation for point in found])
            average = float(np.mean([*faces.values()]))
            points.append(RayPoint(scale=scale, faces=faces, average=average, validation=validation))
    return Ray(budget=budget, method=name, points=points)


def _mean(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([item[name] for item in items])) for name in items[0]}


def _notes(study: Study, by_budget: dict[str, list[Summary]]) -> list[str]:
    notes = []
    for budget, items in by_budget.items():
        if len(items) < len(study.config.seeds):
            notes.append(f"Budget {budget}: {len(items)} of {len(study.config.seeds)} seeds so far.")
        known = shared_methods(items)
        missing = [name for name in study.config.methods if name not in known and name not in items[0].skipped]
        if missing:
            notes.append(f"Budget {budget}: not measured in all of these seeds, and left out: {', '.join(missing)}.")
        if len(items) == 1:
            notes.append(f"Budget {budget}: one seed; its intervals are over examples alone and say nothing of seeds.")
    passes = sorted({item.passes for item in study.config.methods.values()})
    if len(passes) > 1:
        notes.append(
            "Methods with another number of passes than 1 did not see the same tokens as joint training; "
            "all others did, exactly, by their logs."
        )
    return notes


def machine(base: Path) -> dict[str, str]:
    """The machine and the versions that made the tables, without host names; and the commit of the folder `base`."""
    found = {"system": f"{platform.system()} {platform.machine()}", "cores": str(usable_cores())}
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file() and (names := re.findall(r"^model name\s*:\s*(.*)$", cpu.read_text(), re.MULTILINE)):
        found["processor"] = names[0]
    if gpus := gpu_names():
        found["gpu"] = ", ".join(sorted(set(gpus)))
    found |= versions(base)
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["reasoning-gym"] = metadata.version("reasoning-gym")
    return found
