"""A study: its configuration, its directory, and the runs that it consists of."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import write_text
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.launch import LaunchConfig
from merit.config.run import BaselineConfig, RunConfig, resolve_paths
from merit.config.sections import DatasetConfig, EvaluateConfig, ModelConfig, SplitConfig, centre_mark
from merit.config.study import MethodConfig, StudyConfig
from merit.config.yaml import load_section
from merit.context import RunContext
from merit.data.mixture import DatasetSummary
from merit.models.source import ModelFolder, resolve_model
from merit.run.guard import refuse_links
from merit.run.layout import BranchDir, MethodDir, RunDir, relative
from merit.train.spec import BranchData

VERSION = 1  # raise it when a score would come out differently
_EXAMPLE = "`mixture: …`, `seeds: [0, 1, 2]`"
_STEP = 1_000_003  # between the generator seeds of two study seeds


@dataclass(frozen=True)
class StudyDir:
    """The paths of a study.

    It is a run directory, whose methods are the cells: one branch each, named by the fingerprint of its spec. So
    `merit train STUDY --method CELL --branch 0` is the job that trains a cell. Each seed is a run directory, too.
    """

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "study.yaml"

    @property
    def init(self) -> Path:
        """θ0 that the warm-up makes, its random start, and the data of its warm-up."""
        return self.root / "init"

    @property
    def init_done(self) -> Path:
        """The settings that `init` is the result of; written last."""
        return self.init / "init.json"

    @property
    def run(self) -> RunDir:
        """The study as a run directory: its lock, its events, its cells."""
        return RunDir(self.root)

    def seed(self, seed: int) -> RunDir:
        """One seed's data, gradients, conflict and partitions."""
        return RunDir(self.root / "seeds" / str(seed))

    def partition(self, seed: int, method: MethodConfig) -> MethodDir:
        """Where the run of a seed keeps the partition that the method trains on."""
        return self.seed(seed).method(_partition_name(method))

    def cell(self, mark: str) -> BranchDir:
        """One training."""
        return self.run.method(mark).branch(0)

    def point(self, mark: str) -> Path:
        """The scores of one model."""
        return self.root / "points" / f"{mark}.json"

    def drift(self, seed: int) -> Path:
        """θ0's own answers to this seed's prompts."""
        return self.seed(seed).root / "drift.json"

    def job(self, seed: int, budget: str) -> Path:
        return self.root / "jobs" / f"{seed}-{budget}"

    def summary(self, seed: int, budget: str) -> Path:
        """The results of one seed and budget: their job writes them, the tables read them."""
        return self.job(seed, budget) / "summary.json"

    def so_far(self, seed: int, budget: str) -> Path:
        """The same of an unfinished job: the methods that it has measured."""
        return self.job(seed, budget) / "so_far.json"

    def method_result(self, seed: int, budget: str, name: str) -> Path:
        """One method's results in a job."""
        return self.job(seed, budget) / "methods" / f"{name}.json"

    def question(self, seed: int) -> Path:
        """Similarities and measured harm of one seed."""
        return self.seed(seed).root / "question.json"

    @property
    def results(self) -> Path:
        """Tables and figures."""
        return self.root / "results"

    @property
    def table(self) -> Path:
        return self.results / "results.json"


@dataclass
class Study:
    """One study."""

    config: StudyConfig
    base: Path  # the folder that relative paths of the configuration are relative to
    dir: StudyDir

    @classmethod
    def open(cls, path: Path, *, output: Path | None = None) -> Study:
        """From a study file, or from a study's directory (which holds its own).

        Raises:
            InputError: neither; or the file has mistakes.
        """
        if path.is_dir():
            study = StudyDir(Path(os.path.abspath(path)))  # noqa: PTH100 — `resolve` would follow the user's symlinks
            if not study.config.is_file():
                raise InputError("not a study: there is no study.yaml in it", file=path)
            refuse_links(study.root)
            return cls(load_section(study.config, StudyConfig, _EXAMPLE), study.root, study)
        config = load_section(path, StudyConfig, _EXAMPLE)
        base = path.resolve().parent
        if output is None:
            output = base / (config.output or f"runs/{path.stem}")
        study = StudyDir(Path(os.path.abspath(output)))  # noqa: PTH100
        refuse_links(study.root)
        return cls(_with_absolute_paths(config, base), base, study)

    def save(self) -> None:
        """Writes study.yaml, from which jobs and reruns read the study."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.dir.config, text)

    @cached_property
    def model(self) -> ModelConfig:
        """Where θ0 is; a warm-up must have made it."""
        if self.config.model is not None and self.config.warmup is None:
            return self.config.model
        return ModelConfig(path=str(self.dir.init / "branch" / "checkpoint"))

    @cached_property
    def theta0(self) -> ModelFolder:
        """θ0, found and checked, not loaded."""
        return resolve_model(self.model, self.base)

    @property
    def trains_apart(self) -> bool:
        """Whether each cell is a job of its own. A small model trains in seconds and a process takes ten to start, so
        a study job trains its cells itself, unless `launch` gives a branch more than the study job has."""
        launch = self.config.launch
        return launch.store is not None or launch.processes > 1 or launch.accelerate is not None

    @property
    def launch(self) -> LaunchConfig:
        """Where study jobs run: where they see the study's directory, which the machines behind a store do not."""
        launch = self.config.launch
        return launch.model_copy(update={"engine": "local"}) if launch.store is not None else launch

    def seed_run(self, seed: int, progress: Progress = SILENT) -> RunContext:
        """One seed as a run. A generated dataset is drawn anew for each seed; a file has the same rows for all.

        The run's partitions are those that the study's methods need, each once.
        """
        config = self.config
        measured = config.faces.validation + config.faces.test
        apart = {
            name: item if item.max_examples else item.model_copy(update={"max_examples": measured})
            for name, item in {**config.unseen, **config.retention}.items()
        }
        run = RunConfig(
            model=self.model,
            mixture={name: reseeded(item, seed + 1) for name, item in config.mixture.items()},
            evaluate=EvaluateConfig(unseen={name: reseeded(item, seed + 1) for name, item in apart.items()}),
            held_out_fraction=config.held_out_fraction,
            train=config.train,
            calibration=config.calibration,
            split=SplitConfig(axes="auto", centre=config.centre, balance=config.balance),
            baselines={
                _partition_name(item): BaselineConfig(splitter=item.splitter, axes=item.axes, draw=item.draw)
                for item in config.methods.values()
            },
            launch=config.launch if self.trains_apart else LaunchConfig(parallel=1),  # one job, one device
            seed=seed,
        )
        return RunContext(run, self.base, self.dir.seed(seed), progress)

    def cell_run(self, progress: Progress = SILENT) -> RunContext:
        """The run whose branches are the cells: it says where and how they are trained."""
        config = self.seed_run(self.config.seeds[0]).config.model_copy(update={"launch": self.config.launch})
        return RunContext(config, self.base, self.dir.run, progress)


def reseeded(config: DatasetConfig, number: int) -> DatasetConfig:
    """A generated dataset's draw number `number`; any other dataset as it is."""
    if not config.path.startswith("reasoning_gym:"):
        return config
    seed = config.options.get("seed", 0)
    start = seed if isinstance(seed, int) else 0  # the generator says what is wrong with any other
    return config.model_copy(update={"options": {**config.options, "seed": start + number * _STEP}})


def branch_data(datasets: Iterable[DatasetSummary], run: RunDir, root: Path, *, share: float = 1.0) -> list[BranchData]:
    """The datasets of a training: a `share` of each one's examples, which `run` holds. Paths are relative to `root`."""
    return [
        BranchData(
            name=item.name,
            data=relative(run.data(item.name), root),
            weight=item.weight * share,
            fingerprint=item.fingerprint,
        )
        for item in datasets
    ]


_SCORES_NOTHING = {  # fields of a study on which no method's scores depend
    "seeds",
    "budgets",
    "draws",
    "launch",
    "keep",
    "question",
    "reference",
    "subjects",
    "name",
    "output",
    "methods",
}


def scored_settings(config: StudyConfig) -> dict[str, Any]:
    """The fields of a study on which the scores of its methods depend, as JSON.

    Fields at their default are left out, so that a new field of a new version makes no finished job stale.
    """
    found = config.model_dump(mode="json", exclude=_SCORES_NOTHING, exclude_defaults=True)
    # What merit 0.1.0 always did is what it did not write; its finished jobs stay.
    found |= {"centre": centre_mark(config.centre), "balance": config.balance}
    return {key: item for key, item in found.items() if (key, item) not in (("centre", True), ("balance", "tokens"))}


def job_mark(study: Study) -> str:
    """What a job's summary depends on besides its seed and budget.

    Methods are named in full, because the default set may grow.
    """
    config = scored_settings(study.config)
    methods = {name: item.model_dump(mode="json", exclude_defaults=True) for name, item in study.config.methods.items()}
    rules = sorted({item.merge for item in study.config.methods.values()})
    splitters = sorted({item.splitter for item in study.config.methods.values()})
    files = [mark for name in rules for mark in extensions.marks("rules", name)]
    files += [mark for name in splitters for mark in extensions.marks("splitters", name)]
    return fingerprint(VERSION, config, methods, study.theta0.fingerprint, *files)


def _partition_name(method: MethodConfig) -> str:
    name = f"{method.splitter}-{method.axes}"
    return name if method.draw == 1 else f"{name}-draw-{method.draw}"


def _with_absolute_paths(config: StudyConfig, base: Path) -> StudyConfig:
    """`config` with absolute paths to local files, so that jobs find them from the study's directory."""
    sections = ("mixture", "unseen", "retention")
    run = RunConfig.model_construct(
        model=config.model or ModelConfig(path="none"),
        mixture={name: item for section in sections for name, item in getattr(config, section).items()},
        calibration=config.calibration,
        launch=config.launch,
    )
    found = resolve_paths(run, base)
    update: dict[str, object] = {
        section: {name: found.mixture[name] for name in getattr(config, section)} for section in sections
    }
    update |= {"model": found.model} if config.model is not None else {}
    return config.model_copy(update={**update, "calibration": found.calibration, "launch": found.launch})
