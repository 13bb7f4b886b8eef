"""A study: its configuration, its directory, and θ0."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from merit.base.errors import InputError
from merit.base.files import write_text
from merit.base.record import fingerprint
from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig, EvaluateConfig, ModelConfig
from merit.config.study import StudyConfig
from merit.config.yaml import load_section
from merit.models.source import ModelFolder, resolve_model
from merit.run.guard import refuse_links

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


from merit.run.layout import BranchDir, RunDir

VERSION = 1  # raise it when a score would come out differently
_EXAMPLE = "`mixture: …`, `seeds: [0, 1, 2]`"
_STEP = 1_000_003  # between the generator seeds of two study seeds


@dataclass(frozen=True)
class StudyDir:
    """A study. Cells and points are named by the fingerprint of all that they depend on, so what is shared is there
    once, and what is there is right."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "study.yaml"

    @property
    def init(self) -> Path:
        """θ0 that was made here, its random start, and the data of its warm-up."""
        return self.root / "init"

    @property
    def init_done(self) -> Path:
        """Says of what settings `init` is the result; written last."""
        return self.init / "init.json"

    @property
    def run(self) -> RunDir:
        """The study as a run directory: its lock and its events."""
        return RunDir(self.root)

    def seed(self, seed: int) -> RunDir:
        """One seed's data, gradients and conflict."""
        return RunDir(self.root / "seeds" / str(seed))

    def cell(self, mark: str) -> BranchDir:
        """One training."""
        return BranchDir(self.root / "cells" / mark)

    def point(self, mark: str) -> Path:
        """The scores of one model."""
        return self.root / "points" / f"{mark}.json"

    def drift(self, seed: int) -> Path:
        """θ0's own answers to this seed's prompts."""
        return self.root / "seeds" / str(seed) / "drift.json"

    def job(self, seed: int, budget: str) -> Path:
        return self.root / "jobs" / f"{seed}-{budget}"

    def summary(self, seed: int, budget: str) -> Path:
        """What one seed and budget have come to: written by their job, read by the tables."""
        return self.job(seed, budget) / "summary.json"

    def so_far(self, seed: int, budget: str) -> Path:
        """The same of a job that has not finished: the methods that it has measured."""
        return self.job(seed, budget) / "so_far.json"

    def question(self, seed: int) -> Path:
        """Similarities and measured harm of one seed."""
        return self.root / "seeds" / str(seed) / "question.json"

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
        return cls(resolve_study(config, base), base, study)

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

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """θ0's tokenizer."""
        from merit.models.loading import load_tokenizer

        return load_tokenizer(self.theta0, Path(self.model.chat_template) if self.model.chat_template else None)

    def run_config(self, seed: int) -> RunConfig:
        """One seed's data as a run's configuration: generated datasets are drawn anew, files are the same rows."""
        config = self.config
        measured = config.faces.validation + config.faces.test
        apart = {
            name: item if item.max_examples else item.model_copy(update={"max_examples": measured})
            for name, item in {**config.unseen, **config.retention}.items()
        }
        return RunConfig(
            model=self.model,
            mixture={name: reseeded(item, seed + 1) for name, item in config.mixture.items()},
            evaluate=EvaluateConfig(unseen={name: reseeded(item, seed + 1) for name, item in apart.items()}),
            held_out_fraction=config.held_out_fraction,
            train=config.train,
            calibration=config.calibration,
            seed=seed,
        )


def reseeded(config: DatasetConfig, number: int) -> DatasetConfig:
    """A generated dataset's draw number `number`; any other dataset as it is."""
    if not config.path.startswith("reasoning_gym:"):
        return config
    seed = config.options.get("seed", 0)
    start = seed if isinstance(seed, int) else 0  # the generator says what is wrong with any other
    return config.model_copy(update={"options": {**config.options, "seed": start + number * _STEP}})


def resolve_study(config: StudyConfig, base: Path) -> StudyConfig:
    """`config` with every path to a local file made absolute, so that jobs find them from the study's directory."""

    def local(path: str) -> str:
        try:
            return str((base / path).resolve()) if (base / path).exists() else path
        except (OSError, ValueError):
            return path

    def datasets(section: dict[str, DatasetConfig]) -> dict[str, DatasetConfig]:
        return {name: item.model_copy(update={"path": local(item.path)}) for name, item in section.items()}

    update: dict[str, object] = {name: datasets(getattr(config, name)) for name in ("mixture", "unseen", "retention")}
    if config.model is not None:
        update["model"] = config.model.model_copy(update={"path": local(config.model.path)})
    return config.model_copy(update=update)


def job_mark(study: Study) -> str:
    """What a job's summary depends on besides its seed and budget. Fields at their default are left out, so that a
    new version's new field makes no finished job stale; the methods are not, since their default may grow."""
    left = {
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
    config = study.config.model_dump(mode="json", exclude=left, exclude_defaults=True)
    methods = {name: item.model_dump(mode="json", exclude_defaults=True) for name, item in study.config.methods.items()}
    return fingerprint(VERSION, config, methods, study.theta0.fingerprint)
