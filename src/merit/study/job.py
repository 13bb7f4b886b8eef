"""One seed at one budget: every method trained, merged and measured in one process, which can be killed at any moment.

A small model trains in seconds and a process takes ten to start, so a job holds many cells; a cell that is there, from
this job or another, is not trained again, and a method that is measured is not touched.
"""

from __future__ import annotations

import gc
import logging
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import StageError
from merit.base.files import write_text
from merit.base.kept import Files, kept
from merit.base.progress import SILENT, Progress, write_state
from merit.base.record import fingerprint
from merit.config.sections import OTHER_RIDGE, UNSPLIT
from merit.config.study import FOREIGN_RULES, MethodConfig
from merit.conflict.axes import AxesResult
from merit.conflict.similarity import half_gram
from merit.conflict.step import measure_conflict
from merit.data.build import build_mixture
from merit.data.mixture import Mixture
from merit.gradients.collect import Measurement, collect_sketches
from merit.jobs.process import job_lock
from merit.merge.ray import Ray, State, merge_tensors, norm
from merit.merge.recipe import other_method_recipe
from merit.merge.rule import Branches, find_rule
from merit.models.loading import load_model, pick_precision
from merit.run.layout import BranchDir, relative
from merit.split.evidence import AxesEvidence, weigh_axes
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, make_partition
from merit.study.measure import (
    Examples,
    MethodResult,
    PointResult,
    PointScores,
    Summary,
    drift_set,
    measure,
    other_rows,
)
from merit.study.spec import VERSION, Study, job_mark
from merit.train.branch import train_branch
from merit.train.rows import training_rows
from merit.train.spec import BranchData, BranchResult, BranchSpec

_LONG_RAY = 4  # points; a ray of so many is drawn, so all of it is measured on test examples
_PATIENCE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)


class Job:
    """The work on one seed and budget."""

    def __init__(self, study: Study, seed: int, budget: str, progress: Progress = SILENT) -> None:
        self.study, self.seed, self.budget, self.progress = study, seed, budget, progress
        config = study.config
        self.share = config.budgets[budget]
        self.precision = pick_precision(config.train.precision)
        self.ray = Ray(self._load())
        # Jobs of one seed's budgets share this: the first one makes it, the others wait for it.
        with job_lock(study.dir.seed(seed).root / "lock", wait_seconds=_PATIENCE_SECONDS):
            self.data = SeedData(study, seed, progress)
            drift = drift_set(study, seed, self.data.mixture, self.ray.reset)
        self.examples = Examples.of(
            self.data.run, self.data.mixture, frozenset(config.retention), config.faces, other_rows(study, drift)
        )
        # The trainer collects garbage once a branch, which takes a second among the objects of large libraries.
        gc.collect()
        gc.freeze()
        self._started = time.monotonic()

    def run(self) -> Summary:
        """Does what is missing; writes the summary last.

        Raises:
            InputError, StageError: as `train_branch`.
        """
        config, study = self.study.config, self.study
        base = self._point(self.ray.reset(), self._mark("base"), test=True)
        skipped: dict[str, str] = {}
        plans: dict[str, list[BranchSpec]] = {}
        for name, method in config.methods.items():
            if method.merge in FOREIGN_RULES and mergekit() is None:
                skipped[name] = "mergekit is not installed"
                continue
            plans[name] = self.data.specs(method, self.share)
        needed = Counter(cell_mark(spec) for specs in plans.values() for spec in specs)
        results: dict[str, MethodResult] = {}
        total = sum(spec.planned_tokens for specs in plans.values() for spec in specs)
        done = 0
        with self.progress.bar(f"seed {self.seed}, {self.budget}", total=total, unit="tok") as bar:
            for name, specs in plans.items():
                self._tell(done, total, name)
                results[name] = self._method(name, config.methods[name], specs)
                done += sum(spec.planned_tokens for spec in specs)
                bar.update(done, note=name)
                for mark in map(cell_mark, specs):
                    needed[mark] -= 1
                    if not needed[mark] and config.keep == "none":
                        shutil.rmtree(study.dir.cell(mark).checkpoint, ignore_errors=True)
                self._summary(base, results, skipped).save(study.dir.so_far(self.seed, self.budget))
        summary = self._summary(base, results, skipped)
        summary.save(study.dir.summary(self.seed, self.budget))
        study.dir.so_far(self.seed, self.budget).unlink(missing_ok=True)
        self._tell(total, total, "")
        return summary

    def _summary(self, base: PointScores, results: dict[str, MethodResult], skipped: dict[str, str]) -> Summary:
        return Summary(
            mark=job_mark(self.study),
            seed=self.seed,
            budget=self.budget,
            base=base.mark,
            methods=results,
            skipped=skipped,
            parameters=self.ray.parameters,
            seconds=round(time.monotonic() - self._started, 1),
        )

    def _method(self, name: str, method: MethodConfig, specs: list[BranchSpec]) -> MethodResult:
        study = self.study
        measured = method.merge not in FOREIGN_RULES and find_rule(method.merge).sums is not None
        curvature = study.config.curvature if measured else None
        mark = self._mark(specs, method.merge, method.scales, curvature)
        path = study.dir.job(self.seed, self.budget) / "methods" / f"{name}.json"
        known = kept(path, MethodResult, {"mark": mark}, Files(study.dir.point("").parent, digest=None)).record
        if known is not None:
            return known
        branches = [self.train(spec) for spec in specs]
        tokens = [result.supervised_tokens for _, result in branches]
        steps, distances = self._steps(method, specs, branches)
        points = [
            self._point_of(step, scale, ridge, fingerprint(mark, scale, ridge))
            for ridge, step in steps.items()
            for scale in sorted({1.0, *method.scales})
        ]
        plain = min((i for i, item in enumerate(points) if item.scale == 1), key=lambda i: points[i].average)
        chosen = min(range(len(points)), key=lambda i: points[i].average)
        reported = {plain, chosen}
        if len(method.scales) >= _LONG_RAY:
            reported |= {i for i, item in enumerate(points) if item.ridge == points[chosen].ridge}
        for index in reported:
            item = points[index]
            self._point(self.ray.set(steps[item.ridge], item.scale), item.mark, test=True)
        result = MethodResult(
            name=name,
            mark=mark,
            groups=[[item.name for item in spec.data] for spec in specs],
            supervised_tokens=sum(tokens),
            branch_tokens=tokens,
            steps=[result.steps for _, result in branches],
            seconds=round(sum(result.seconds for _, result in branches), 3),
            branch_distance=distances,
            points=points,
            plain=plain,
            chosen=chosen,
        )
        result.save(path)
        return result

    def train(self, spec: BranchSpec) -> tuple[BranchDir, BranchResult]:
        """The cell of `spec`, trained unless it is there."""
        branch = self.study.dir.cell(cell_mark(spec))
        if not branch.spec.is_file():
            spec.save(branch.spec)
        return branch, train_branch(self.study.dir.run, branch, base=self.study.base)

    def _steps(
        self, method: MethodConfig, specs: list[BranchSpec], branches: list[tuple[BranchDir, BranchResult]]
    ) -> tuple[dict[float | None, State], list[float]]:
        """Ridge (None where the rule has none) → the merge's step from θ0; and how far each branch went."""
        folders = [branch.checkpoint for branch, _ in branches]
        tokens = [result.supervised_tokens for _, result in branches]
        if method.merge in FOREIGN_RULES:
            distances = [norm(self.ray.step(folder)) for folder in folders]
            work = self.study.dir.job(self.seed, self.budget) / "mergekit"
            return {
                None: foreign_step(self.ray, method.merge, folders, tokens, self.study.theta0.path, work)
            }, distances
        rule = find_rule(method.merge)
        merged = Branches(folders, tokens)
        weights = rule.weights(merged)
        if rule.tensor is not None:
            out = self.study.dir.job(self.seed, self.budget) / "tensors"
            distances = merge_tensors(rule, merged, out, base=self.study.theta0.path, ridge=OTHER_RIDGE)
            step = self.ray.step(out)
            shutil.rmtree(out)
            return {None: step}, distances
        if rule.sums is None:
            mean, distances = self.ray.mean(folders, weights)
            return {None: mean}, distances
        sums = rule.sums(self.ray.theta0)
        distances = []
        for spec, folder, weight in zip(specs, folders, weights, strict=True):
            step = self.ray.step(folder)
            distances.append(norm(step))
            rows = training_rows(self.study.dir.root, spec, self.study.config.curvature.examples)
            sums.add(self.ray.set(step), step, weight, rows)
        return {ridge: sums.solve(ridge) for ridge in self.study.config.curvature.ridge}, distances

    def _point_of(self, step: State, scale: float, ridge: float | None, mark: str) -> PointResult:
        scores = self._point(self.ray.set(step, scale), mark, test=False)
        return PointResult(
            scale=scale,
            ridge=ridge,
            mark=scores.mark,
            validation={name: round(value, 6) for name, value in scores.validation.losses.items()},
            average=scores.validation.average,
            distance=norm(step) * scale,
        )

    def _point(self, model: Any, mark: str, *, test: bool) -> PointScores:
        """The scores of what `model` is now; measured unless they are there."""
        path = self.study.dir.point(mark)
        known = kept(path, PointScores).record
        if known is not None and (known.test is not None or not test):
            return known
        tokens = self.study.config.faces.batch_tokens
        validation = (
            known.validation
            if known is not None
            else measure(model, self.examples.validation, batch_tokens=tokens, precision=self.precision)
        )
        reported = measure(model, self.examples.test, batch_tokens=tokens, precision=self.precision) if test else None
        scores = PointScores(mark=mark, validation=validation, test=reported)
        if not all(value == value and value < float("inf") for value in validation.losses.values()):
            raise StageError(f"a loss is not finite at a point of seed {self.seed}, {self.budget}: lower the rate")
        scores.save(path)
        return scores

    def _mark(self, *parts: Any) -> str:
        """Of a model that `parts` make from θ0, measured on this seed's examples."""
        return fingerprint(VERSION, parts, self.examples.mark, self.study.theta0.fingerprint)

    def _load(self) -> Any:
        theta0 = self.study.theta0
        return load_model(theta0.path, trust_remote_code=theta0.trust_remote_code)

    def _tell(self, done: float, total: float, note: str) -> None:
        folder = self.study.dir.job(self.seed, self.budget)
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / "progress.json", done, max(1, total), note)


_SEED_STEP = 1000  # between the training seeds of two study seeds: room for a soup's copies


class SeedData:
    """One seed: its data, and its conflict, which is measured once for all methods and budgets.

    Attributes:
        evidence: how many axes the data support.
    """

    def __init__(self, study: Study, seed: int, progress: Progress = SILENT) -> None:
        """Reads and measures what is not there yet.

        Raises:
            InputError: a dataset cannot be read or measured.
        """
        self.study, self.seed = study, seed
        self.run = study.dir.seed(seed)
        config = study.run_config(seed)
        self.mixture: Mixture = build_mixture(config, study.base, self.run, study.tokenizer, progress)
        theta0 = study.theta0
        measurement = Measurement(
            self.run,
            self.mixture,
            lambda: load_model(theta0.path, trust_remote_code=theta0.trust_remote_code),
            config.calibration,
            theta0.fingerprint,
            pick_precision(config.train.precision),
            progress,
        )
        self.store = collect_sketches(measurement)
        most = max(2, *(item.axes for item in study.config.methods.values() if isinstance(item.axes, int)))
        most = min(most, len(self.mixture.names))
        _, axes, similarity = measure_conflict(self.run, self.mixture, self.store, most, study.config.centre)
        self.axes: AxesResult = axes
        self.similarity: NDArray[np.float64] = similarity
        self.halves = half_gram(self.store.companion, self.mixture.names)
        self.evidence: AxesEvidence = weigh_axes(self.halves, self.mixture.planned_tokens, centre=study.config.centre)

    def partition(self, method: MethodConfig) -> Partition:
        """The method's groups. A soup's are copies of the whole; no axis worth a cut is joint training."""
        splitter, axes = method.splitter, 1
        if isinstance(method.axes, int):
            axes = method.axes
        else:
            axes = min(self.evidence.recommended, len(self.axes.scores[0]))
            if axes == 0:
                splitter, axes = UNSPLIT, 1
        partition = make_partition(
            splitter,
            SplitRequest(
                self.mixture.planned_tokens, r=axes, seed=self.seed, axes=self.axes, similarity=self.similarity
            ),
        )
        if method.copies is not None:
            return partition.model_copy(update={"groups": [partition.groups[0]] * method.copies})
        return partition

    def specs(self, method: MethodConfig, budget: float) -> list[BranchSpec]:
        """One a branch."""
        return [
            self.spec(
                group.datasets,
                budget,
                epochs=method.epochs,
                rate=method.rate,
                pull=method.pull,
                copy=k if method.copies is not None else 0,
            )
            for k, group in enumerate(self.partition(method).groups)
        ]

    def spec(
        self, names: Sequence[str], budget: float, *, epochs: float, rate: float, pull: float = 0.0, copy: int = 0
    ) -> BranchSpec:
        """The training on `names`. Nothing in it says which method asked."""
        study, train = self.study, self.study.config.train
        summaries = {item.name: item for item in self.mixture.datasets}
        order = sorted(names)  # the same group is the same cell, however it was found
        data = [
            BranchData(
                name=name,
                data=relative(self.run.data(name), study.dir.root),
                weight=summaries[name].weight * budget,
                fingerprint=summaries[name].fingerprint,
            )
            for name in order
        ]
        recipe = train.model_copy(
            update={"epochs": train.epochs * epochs, "learning_rate": train.learning_rate * rate, "pull": pull}
        )
        planned = sum(summaries[name].planned_tokens for name in order) * budget * recipe.epochs
        return BranchSpec(
            method="study",
            branch=0,
            model=study.model,
            model_fingerprint=study.theta0.fingerprint,
            train=recipe,
            data=data,
            max_length=self.mixture.max_length,
            planned_tokens=round(planned),
            seed=self.seed * _SEED_STEP + copy,
        )


def cell_mark(spec: BranchSpec) -> str:
    """The cell's name."""
    return fingerprint(spec)


_SECONDS = 3600


def mergekit() -> str | None:
    """mergekit's program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("mergekit-yaml")
    return str(beside) if beside.is_file() else shutil.which("mergekit-yaml")


def foreign_step(
    ray: Ray, method: str, folders: Sequence[Path], tokens: Sequence[int], base: Path, work: Path
) -> State:
    """The step from θ0 that mergekit's `method` makes of the branches, at its own defaults.

    Raises:
        StageError: mergekit is not installed, took too long, or failed; says what it printed last.
    """
    program = mergekit()
    if program is None:
        raise StageError("mergekit is not installed")
    recipe, out = work / "recipe.yaml", work / "out"
    shutil.rmtree(work, ignore_errors=True)
    models = [str(folder) for folder in folders]
    write_text(recipe, other_method_recipe(method, models, [float(n) for n in tokens], str(base), "float32"))
    command = [program, str(recipe), str(out), "--no-copy-tokenizer", "--random-seed", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise StageError(f"mergekit-yaml has not finished {recipe} within {_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        raise StageError(f"mergekit-yaml failed on {recipe}: {said}")
    step = ray.step(out)
    shutil.rmtree(work, ignore_errors=True)
    return step
