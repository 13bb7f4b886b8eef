"""One seed at one budget: every method trained, merged and measured in one process, which can be killed at any moment.

The seed is a run of merit itself up to its partitions (`SeedData`); a cell is the branch of a branch job. A cell that
another method or job has trained is not trained again, and a measured method is not touched.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base import extensions
from merit.base.errors import StageError
from merit.base.files import write_text
from merit.base.kept import Files, kept
from merit.base.progress import SILENT, Progress, write_state
from merit.base.record import fingerprint
from merit.config.sections import TrainConfig
from merit.config.study import FOREIGN_RULES, MethodConfig
from merit.jobs.process import job_lock
from merit.merge.average import merge_checkpoints
from merit.merge.ray import Ray, State, norm
from merit.merge.recipe import other_method_recipe
from merit.merge.rule import Branches, MergeRule, find_rule
from merit.models.loading import load_model, pick_precision
from merit.pipeline import run_pipeline
from merit.run.layout import BranchDir
from merit.split import step as split
from merit.split.partition import Partition
from merit.study.cells import Planned, RoundsCell, cell_mark, cell_marks, without_place
from merit.study.measure import (
    Examples,
    MethodResult,
    PointResult,
    PointScores,
    Summary,
    choose,
    drift_set,
    measure,
)
from merit.study.spec import VERSION, Study, branch_data, job_mark
from merit.train.branch import train_branch
from merit.train.curvature import measure_branch
from merit.train.spec import BranchResult, BranchSpec, damaged_files
from merit.train.step import ask_for, prepare_branch

_LONG_RAY = 4  # points; a figure shows a ray of this length, so all its points are measured on test examples
_SEED_STEP = 1000  # between the training seeds of two study seeds: room for a soup's copies
_PATIENCE_SECONDS = 24 * 3600
_MERGEKIT_SECONDS = 3600


class SeedData:
    """One seed: its data, its conflict and its partitions, which all methods and budgets share."""

    def __init__(self, study: Study, seed: int, progress: Progress = SILENT) -> None:
        """Runs the stages up to the partitions; stages that are up to date are skipped.

        Raises:
            InputError: a dataset cannot be read or measured.
            StageError: another process has worked on this seed for a day.
        """
        self.study, self.seed = study, seed
        self.context = study.seed_run(seed, progress)
        # The jobs of one seed's budgets share this: the first one makes it, the others wait for it.
        with job_lock(self.context.run.root / "lock", wait_seconds=_PATIENCE_SECONDS):
            run_pipeline(self.context, until=split.NAME)
        self.mixture = self.context.mixture

    def partition(self, method: MethodConfig) -> Partition:
        """The groups that a method trains on."""
        return Partition.load(self.study.dir.partition(self.seed, method).partition)

    def specs(self, method: MethodConfig, budget: float) -> list[BranchSpec]:
        """The trainings that a method needs, one spec a branch; in rounds, the first of each branch."""
        groups = [group.datasets for group in self.partition(method).groups]
        if method.copies is not None:  # a soup: copies of the whole mixture
            groups = groups[:1] * method.copies
        recipe = scaled(self.study.config.train, method)
        return [
            self.spec(
                group,
                budget,
                recipe,
                copy=k if method.copies is not None else 0,
                branch=k if method.rounds > 1 else 0,
            )
            for k, group in enumerate(groups)
        ]

    def spec(
        self, names: Sequence[str], budget: float, recipe: TrainConfig, *, copy: int = 0, branch: int = 0
    ) -> BranchSpec:
        """The training on the datasets `names`. Nothing in it says which method asked for it."""
        summaries = {item.name: item for item in self.mixture.datasets}
        data = [summaries[name] for name in sorted(names)]  # the same group is the same cell, however it was found
        return BranchSpec(
            method="study",
            branch=branch,
            model=self.study.model,
            model_fingerprint=self.study.theta0.fingerprint,
            train=recipe,
            data=branch_data(data, self.context.run, self.study.dir.root, share=budget),
            max_length=self.mixture.max_length,
            planned_tokens=round(sum(item.planned_tokens for item in data) * budget * recipe.epochs),
            seed=self.seed * _SEED_STEP + copy,
        )


def scaled(train: TrainConfig, by: MethodConfig) -> TrainConfig:
    """The study's recipe with the epochs, the batch, the rate, the decay and the rounds of one method."""
    changes = {
        "epochs": train.epochs * by.epochs,
        "batch_tokens": train.batch_tokens * by.machines,
        "learning_rate": train.learning_rate * by.rate,
        "pull": by.pull,
        "rounds": by.rounds,
        "carry_optimizer": by.carry_optimizer,
    }
    return train.model_copy(update=changes)


@dataclass(frozen=True)
class Cell:
    """A training that is done."""

    branch: BranchDir
    result: BranchResult


class Job:
    """The work on one seed and budget."""

    def __init__(self, study: Study, seed: int, budget: str, progress: Progress = SILENT) -> None:
        self.study, self.seed, self.budget, self.progress = study, seed, budget, progress
        self.share = study.config.budgets[budget]
        self.folder = study.dir.job(seed, budget)
        self.data = SeedData(study, seed, progress)
        self.cell_run = study.cell_run(progress)
        self.precision = pick_precision(study.config.train.precision)
        theta0 = study.theta0
        self.ray = Ray(load_model(theta0.path, trust_remote_code=theta0.trust_remote_code))
        with job_lock(self.data.context.run.root / "lock", wait_seconds=_PATIENCE_SECONDS):
            drift = drift_set(study, self.data.context, self.ray.reset)
        self.examples = Examples.of(study, self.data.context, drift)
        # The trainer collects garbage once a branch, which takes a second among the objects of large libraries.
        gc.collect()
        gc.freeze()
        self._started = time.monotonic()

    def run(self) -> Summary:
        """Trains, merges and measures what is missing; writes the summary last.

        Raises:
            InputError, StageError: as `train_branch`.
        """
        study = self.study
        base = self._point(self.ray.reset(), self._mark("base"), test=True)
        plans = {name: self.data.specs(method, self.share) for name, method in available_methods(study).items()}
        skipped = {name: "mergekit is not installed" for name in study.config.methods if name not in plans}
        cells = {name: cell_marks(study.config.methods[name], specs) for name, specs in plans.items()}
        needed = Counter(mark for marks in cells.values() for mark in marks)
        results: dict[str, MethodResult] = {}
        total = sum(spec.planned_tokens for specs in plans.values() for spec in specs)
        done = 0
        with self.progress.bar(f"seed {self.seed}, {self.budget}", total=total, unit="tok") as bar:
            for name, specs in plans.items():
                self._tell(done, total, name)
                results[name] = self._method(name, study.config.methods[name], specs)
                done += sum(spec.planned_tokens for spec in specs)
                bar.update(done, note=name)
                for mark in cells[name]:
                    needed[mark] -= 1
                    if not needed[mark]:
                        self.drop_weights(mark)
                self._summary(base, results, skipped).save(study.dir.so_far(self.seed, self.budget))
        summary = self._summary(base, results, skipped)
        summary.save(study.dir.summary(self.seed, self.budget))
        study.dir.so_far(self.seed, self.budget).unlink(missing_ok=True)
        self._tell(total, total, "")
        return summary

    def train(self, spec: BranchSpec) -> Cell:
        """The cell of `spec`, which is trained here unless it is finished and undamaged."""
        branch = self.study.dir.cell(cell_mark(spec))
        if not prepare_branch(branch, spec) and damaged_files(branch):
            branch.done.unlink()
            prepare_branch(branch, spec)
        return Cell(branch, train_branch(self.study.dir.run, branch, base=self.study.base))

    def train_rounds(self, method: MethodConfig, specs: Sequence[BranchSpec]) -> tuple[list[Cell], RoundsCell]:
        """The branches of a method's last round, and its cell. What is missing is trained here, and merged."""

        def train(todo: Sequence[Planned]) -> None:
            for item in todo:  # a merge's path is relative to the study's directory
                base = self.study.base if item.spec.round == 1 else self.study.dir.root
                train_branch(self.study.dir.run, item.dir, base=base)

        rounds = RoundsCell.of(self.cell_run, method, self.data.partition(method), specs)
        branches = rounds.train(train)
        return [Cell(branch, BranchResult.load(branch.done)) for branch in branches], rounds

    def drop_weights(self, mark: str) -> None:
        """Removes the weights of a cell that nothing else needs, unless the study keeps them."""
        home = self.study.dir.run.method(mark)
        if self.study.config.keep == "none":
            for folder in (home.rounds, home.merged(), *home.branches.glob("*/checkpoint")):
                shutil.rmtree(folder, ignore_errors=True)

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
        rule = None if method.merge in FOREIGN_RULES else find_rule(method.merge)
        measured = rule is not None and (rule.sums is not None or rule.needs_inputs)
        curvature = study.config.curvature if measured else None
        own = [method.ridge] if method.ridge is not None else []
        file = extensions.marks("rules", method.merge)
        rest = [method.merge, method.scales, curvature, *own, *file]
        mark = self._mark(without_place(specs), *rest)
        same = {mark, self._mark(specs, *rest)}  # which earlier versions wrote
        path = study.dir.method_result(self.seed, self.budget, name)
        known = kept(path, MethodResult, {"mark": same}, Files(study.dir.point("").parent, digest=None)).record
        if known is not None:
            return known
        steps: dict[float | None, State]
        if method.rounds > 1:
            cells, rounds = self.train_rounds(method, specs)
            steps, distances = {None: self.ray.step(rounds.method.dir.merged())}, rounds.merge.branch_displacement
            between = self._between(rounds, mark)
        else:
            cells = [self.train(spec) for spec in specs]
            steps, distances = self._merge(method, rule, cells)
            between = []
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
        results = [cell.result for cell in cells]
        found = MethodResult(
            name=name,
            mark=mark,
            groups=[[item.name for item in spec.data] for spec in specs],
            supervised_tokens=sum(result.supervised_tokens for result in results),
            branch_tokens=[result.supervised_tokens for result in results],
            steps=[result.steps for result in results],
            seconds=round(sum(result.seconds for result in results), 3),
            branch_distance=distances,
            points=points,
            plain=plain,
            chosen=chosen,
            between=between,
        )
        found.save(path)
        return found

    def _between(self, rounds: RoundsCell, mark: str) -> list[PointResult]:
        """The merges after every round but the last, measured on test examples, too."""
        found = []
        for method in rounds.method.before:
            step = self.ray.step(method.dir.merged())
            found.append(self._point_of(step, 1.0, None, fingerprint(mark, "round", method.round), test=True))
        return found

    def _merge(
        self, method: MethodConfig, rule: MergeRule | None, cells: Sequence[Cell]
    ) -> tuple[dict[float | None, State], list[float]]:
        """Ridge (None where the rule has none) → the merge's step from θ0; and each branch's ‖θ_k − θ0‖.

        Args:
            rule: merit's rule of the method's merge; None for one of mergekit's.
        """
        branches = Branches(
            [cell.branch.checkpoint for cell in cells], [cell.result.supervised_tokens for cell in cells]
        )
        if rule is not None and rule.is_average:
            mean, distances = self.ray.mean(branches.folders, rule.weights(branches))
            return {None: mean}, distances
        config = self.study.config.curvature
        ridges = config.ridge if method.ridge is None else [method.ridge]
        if rule is not None and rule.sums is not None:  # measured once, solved for every ridge
            sums, distances = self.ray.sum_up(rule, branches, self.study.dir.run, config.examples)
            return {ridge: sums.solve(ridge) for ridge in ridges}, distances
        if rule is not None and rule.needs_inputs:
            for cell in cells:
                ask_for(cell.branch, config.examples)
                measure_branch(self.study.dir.run, cell.branch)
            merged = [self._solved(method, rule, branches, ridge) for ridge in ridges]
            return dict(zip(ridges, (step for step, _ in merged), strict=True)), merged[0][1]
        if rule is not None:
            step, distances = self._solved(method, rule, branches, method.ridge)
            return {None: step}, distances
        out = self.folder / "merged"
        shutil.rmtree(out, ignore_errors=True)
        distances = [norm(self.ray.step(folder)) for folder in branches.folders]
        merge_by_mergekit(method.merge, branches, self.study.theta0.path, out)
        step = self.ray.step(out)
        shutil.rmtree(out)
        return {None: step}, distances

    def _solved(
        self, method: MethodConfig, rule: MergeRule, branches: Branches, ridge: float | None
    ) -> tuple[State, list[float]]:
        """The step of a merge that the engine makes, and each branch's ‖θ_k − θ0‖."""
        out = self.folder / "merged"
        shutil.rmtree(out, ignore_errors=True)
        merge = merge_checkpoints(
            branches.folders,
            rule.weights(branches),
            {1.0: out},
            base=self.study.theta0.path,
            rule=method.merge,
            ridge=ridge,
            dtype="float32",
            trust_remote_code=self.study.theta0.trust_remote_code,
        )
        step = self.ray.step(out)
        shutil.rmtree(out)
        return step, merge.branch_displacement

    def _point_of(
        self, step: State, scale: float, ridge: float | None, mark: str, *, test: bool = False
    ) -> PointResult:
        scores = self._point(self.ray.set(step, scale), mark, test=test)
        return PointResult(
            scale=scale,
            ridge=ridge,
            mark=scores.mark,
            validation={name: round(value, 6) for name, value in scores.validation.losses.items()},
            average=scores.validation.average,
            distance=norm(step) * scale,
        )

    def _point(self, model: Any, mark: str, *, test: bool) -> PointScores:
        """The scores of `model` with its present weights: kept ones, or measured now."""
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
        chosen = choose(model, self.examples.test, batch_tokens=tokens, precision=self.precision) if test else {}
        scores = PointScores(mark=mark, validation=validation, test=reported, chosen=chosen)
        if not all(value == value and value < float("inf") for value in validation.losses.values()):
            raise StageError(f"a loss is not finite at a point of seed {self.seed}, {self.budget}: lower the rate")
        scores.save(path)
        return scores

    def _mark(self, *parts: Any) -> str:
        """The fingerprint of a model that `parts` make from θ0, measured on this seed's examples."""
        return fingerprint(VERSION, parts, self.examples.mark, self.study.theta0.fingerprint)

    def _tell(self, done: float, total: float, note: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_state(self.folder / "progress.json", done, max(1, total), note)


def available_methods(study: Study) -> dict[str, MethodConfig]:
    """The study's methods that this machine can merge."""
    there = mergekit() is not None
    return {name: item for name, item in study.config.methods.items() if there or item.merge not in FOREIGN_RULES}


def mergekit() -> str | None:
    """mergekit's program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("mergekit-yaml")
    return str(beside) if beside.is_file() else shutil.which("mergekit-yaml")


def merge_by_mergekit(method: str, branches: Branches, base: Path, out: Path) -> None:
    """Writes mergekit's merge of the branches to `out`, at the method's own defaults.

    Raises:
        StageError: mergekit is not installed, took too long, or failed; quotes the last line that it printed.
    """
    program = mergekit()
    if program is None:
        raise StageError("mergekit is not installed")
    recipe = out.with_name("recipe.yaml")
    models = [str(folder) for folder in branches.folders]
    weights = [float(count) for count in branches.tokens]
    write_text(recipe, other_method_recipe(method, models, weights, str(base), "float32"))
    command = [program, str(recipe), str(out), "--no-copy-tokenizer", "--random-seed", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MERGEKIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise StageError(f"mergekit-yaml has not finished {recipe} within {_MERGEKIT_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        raise StageError(f"mergekit-yaml failed on {recipe}: {said}")
