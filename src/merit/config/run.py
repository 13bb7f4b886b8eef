"""The configuration of a run, as the user writes it and as its run directory keeps it: with every default, version and
absolute path, so that the run can be repeated."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, model_validator

from merit.base import extensions
from merit.base.errors import did_you_mean
from merit.base.files import is_url, matching
from merit.config.calibration import CalibrationConfig
from merit.config.diagnose import DiagnoseConfig
from merit.config.launch import LaunchConfig
from merit.config.published import apply_published
from merit.config.sections import (
    LOCAL,
    LOCAL_IF_THERE,
    UNSPLIT,
    AxesCount,
    DatasetConfig,
    EvaluateConfig,
    GateConfig,
    LocalPath,
    Location,
    MergeConfig,
    ModelConfig,
    PrepareConfig,
    RuleConfig,
    Scale,
    Section,
    Seed,
    SplitConfig,
    SplitterName,
    TrainConfig,
    refused,
)

AnySection = TypeVar("AnySection", bound=Section)
MAIN_METHOD = "merit"
MAX_NAME = 200
Problem = tuple[Location, str]
_VERSIONS = ("merit-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def also_name(rule: str) -> str:
    """What the merge of the main method's branches by a rule of `merge.also` is called."""
    return f"{MAIN_METHOD}-{rule}"


def trained_by(name: str, branches: Mapping[str, str | None]) -> str:
    """Follows `branches` from the method `name` to the one that trains.

    Args:
        branches: every method → the method whose branches it merges; None: it trains its own.

    Raises:
        ValueError: the way leads to no such method, or back; says so in words.
    """
    seen = [name]
    while (further := branches[seen[-1]]) is not None:
        if further not in branches:
            known = [other for other in branches if other != name]
            near = did_you_mean(further, known, otherwise=f"; there are {', '.join(known)}")
            raise ValueError(f"no method {further!r:.60}{near}")
        if further in seen:
            raise ValueError(f"leads back to `{further}`: name a method that trains its own branches")
        seen.append(further)
    return seen[-1]


def draws(splitter: str) -> bool:
    """Whether the splitter draws its groups by chance."""
    role: str = extensions.load("splitters", splitter).role
    return role == "chance"


class BaselineConfig(Section):
    """Another splitter with the same tokens, or another merge of a method's branches. A string is short for `splitter`.

    It runs through the same stages as the main method.
    """

    splitter: SplitterName | None = Field(
        default=None, description="`single` is joint training, `replicate` a uniform soup. Give this or `branches`."
    )
    axes: AxesCount | None = Field(default=None, description="Default: the main method's.")
    file: LocalPath | None = Field(default=None, description="Group file of a `manual` baseline.")
    branches: str | None = Field(
        default=None,
        description="Train nothing: merge the branches of this method, `merit` or another baseline, once more.",
    )
    merge: RuleConfig | None = Field(
        default=None, description="The merge rule, e.g. `regmean` or {rule: regmean, ridge: 0.1}. Default: as `merge`."
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="β of each model θ0 + β(θ − θ0); `single` at 0.5 is WiSE-FT.",
    )
    rounds: int | None = Field(default=None, ge=1, le=64, description="As `train.rounds`, which is the default.")
    draw: int = Field(default=1, ge=1, description="Which draw of random groups (`random`); 1 is that of the seed.")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"splitter": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _trains_or_merges(self) -> BaselineConfig:
        problems: list[Problem] = []
        if self.branches is None and self.splitter is None:
            problems.append((("splitter",), "missing; give this field, or `branches`"))
        for name in ("splitter", "axes", "file", "rounds"):
            if self.branches is not None and getattr(self, name) is not None:
                problems.append(((name,), f"the branches of `{self.branches}` are split already; remove this key"))
        if self.draw > 1 and (self.splitter is None or not draws(self.splitter)):
            problems.append((("draw",), "only random groups are drawn; remove this key"))
        if problems:
            raise refused(problems)
        return self


class RunConfig(Section):
    """What `merit.yaml` holds. Paths are relative to the file's own folder."""

    method: Literal["published"] | None = Field(
        default=None,
        description="`published` sets everything as in the paper, and refuses keys that contradict it. Default: the "
        "defaults below, which differ from the paper in the sketch alone.",
    )
    model: ModelConfig = Field(description="θ0, the shared init.")
    mixture: dict[str, DatasetConfig] = Field(min_length=1, description="The datasets, by name.")
    prepare: PrepareConfig | None = Field(
        default=None, description="Joint training first, which makes `model` merge-ready; `{}` for the defaults."
    )
    gate: GateConfig | None = Field(default=None, description="Pilots before training; `{}` for the defaults.")
    held_out_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of each dataset's prompts to hold out, by hash; one at least."
    )
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig, description="Gradients and sketches.")
    split: SplitConfig = Field(default_factory=SplitConfig, description="How to cut the mixture into groups.")
    baselines: dict[str, BaselineConfig] = Field(
        default_factory=dict, description="Methods to compare with by name, e.g. {joint: single, random: random}."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training recipe.")
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description="Where branches run.")
    merge: MergeConfig = Field(default_factory=MergeConfig, description="How to merge the branches.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="What to measure.")
    diagnose: DiagnoseConfig = Field(default_factory=DiagnoseConfig, description="Checks of the basin and the theory.")
    seed: Seed = Field(default=0, description="Seed of splitters and training.")
    output: str | None = Field(default=None, description="The run directory. Default: runs/<name of this file>.")

    @model_validator(mode="before")
    @classmethod
    def _from_published(cls, value: Any) -> Any:
        return apply_published(value) if isinstance(value, dict) and value.get("method") == "published" else value

    @model_validator(mode="after")
    def _across_fields(self) -> RunConfig:
        problems = [*self._wrong_names(), *self._wrong_also(), *self._wrong_branches()]
        problems += [*self._wrong_splits(), *self._wrong_checks(), *self._wrong_rounds()]
        if problems:
            raise refused(problems)
        return self

    @property
    def measured_examples(self) -> int | None:
        """As of `merge`, for any of the run's merges."""
        merges = [self.merge, *(self.merge.by(item.merge) for item in self.others.values())]
        return next((examples for one in merges if (examples := one.measured_examples) is not None), None)

    @property
    def others(self) -> dict[str, BaselineConfig]:
        """Every method but the main one, by name: what `merge.also` stands for, then the baselines."""
        also = {
            also_name(item.rule): BaselineConfig(branches=MAIN_METHOD, merge=item, scales=self.merge.scales)
            for item in self.merge.also
        }
        return also | self.baselines

    def trained_by(self, name: str) -> str:
        """The method whose branches the method `name` merges: itself, unless it says `branches`.

        Raises:
            ValueError: there is none; says why in words.
        """
        return trained_by(name, {MAIN_METHOD: None} | {name: item.branches for name, item in self.others.items()})

    def _wrong_also(self) -> Iterator[Problem]:
        known: set[str] = set()
        if self.merge.also and extensions.load("splitters", self.split.splitter).one_group:
            yield ("merge", "also"), f"`splitter: {self.split.splitter}` makes one branch: there is nothing to merge"
        for index, item in enumerate(self.merge.also):
            at, name = ("merge", "also", index), also_name(item.rule)
            if name in known:
                yield at, f"the name `{name}` is used twice; give one a name of its own in `baselines`"
            elif name in self.baselines:
                yield at, f"`{name}` is also the name of a baseline; rename that one"
            elif self.merge.by(item).same_rule(self.merge):
                yield at, f"`merge.weights` is `{item.rule}` already; remove one of the two"
            known.add(name)

    def _wrong_branches(self) -> Iterator[Problem]:
        for name, item in self.baselines.items():
            try:
                trained = self.trained_by(name)
            except ValueError as error:
                yield ("baselines", name, "branches"), str(error)
                continue
            splitter = (self.split if trained == MAIN_METHOD else self.baselines[trained]).splitter
            if item.merge is not None and splitter and extensions.load("splitters", splitter).one_group:
                yield (
                    ("baselines", name, "merge"),
                    f"`splitter: {splitter}` makes one branch: there is nothing to merge; remove this key",
                )

    def _wrong_names(self) -> Iterator[Problem]:
        sections: dict[Location, Iterable[str]] = {
            ("mixture",): self.mixture,
            ("evaluate", "unseen"): self.evaluate.unseen,
            ("prepare", "mixture"): self.prepare.mixture if self.prepare else (),
        }
        for section, names in sections.items():
            for name in names:
                if not name.strip() or len(name) > MAX_NAME:
                    yield (*section, name), f"a name must have 1 to {MAX_NAME} characters, not {len(name)}"
                elif "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
                    yield (*section, name), "a name must not hold / or \\ or control characters, or be a path"
        for name in self.evaluate.unseen:
            if name in self.mixture:
                yield ("evaluate", "unseen", name), "this is also the name of a dataset in `mixture`; rename one"
        for name in self.baselines:
            if not re.fullmatch(r"[a-z0-9_][a-z0-9_\-]{0,39}", name):
                yield ("baselines", name), "use lower-case letters, digits, - and _ (40 at most)"
            elif name in (MAIN_METHOD, "base", "gate", "prepare"):
                yield ("baselines", name), "merit uses this name itself; choose another"

    def _wrong_checks(self) -> Iterator[Problem]:
        name = self.split.splitter
        if self.diagnose.checks and extensions.load("splitters", name).one_group:
            yield ("diagnose", "checks"), f"a diagnosis needs two branches at least, and `splitter: {name}` makes one"
        if self.diagnose.checks and 1.0 not in self.merge.scales:
            yield ("diagnose", "checks"), "a diagnosis measures the merge itself; add 1.0 to `merge.scales`"

    def _wrong_rounds(self) -> Iterator[Problem]:
        for name, item in self.baselines.items():
            if (item.rounds or 1) > 1 and self.train.lora is not None:
                said = "an adapter cannot go on from a merge: leave out `train.lora`, or set this to 1"
                yield ("baselines", name, "rounds"), said

    def _wrong_splits(self) -> Iterator[Problem]:
        count = len(self.mixture)
        if count == 1 and self.method is None and "balance" in self.split.model_fields_set:
            yield ("split", "balance"), "one dataset leaves nothing to balance; remove this key, or add a dataset"
        wanted: list[tuple[Location, str, int | Literal["auto"], str | None]] = [
            (("split",), self.split.splitter, self.split.axes, self.split.file)
        ]
        wanted += [
            (("baselines", name), base.splitter, base.axes or self.split.axes, base.file)
            for name, base in self.baselines.items()
            if base.splitter is not None
        ]
        for at, splitter, axes, file in wanted:
            found = extensions.load("splitters", splitter)
            if found.needs_file and file is None:
                yield (*at, "file"), f"the {splitter} splitter needs a file that names the groups"
            elif count >= found.least_datasets(axes):
                continue
            elif count < 2:
                yield (
                    (*at, "splitter"),
                    f"one dataset cannot conflict with another; add a dataset, or use `splitter: {UNSPLIT}`",
                )
            elif isinstance(axes, int):
                yield (
                    (*at, "axes"),
                    f"{axes} axes make {2**axes} groups, but the mixture has {count} datasets; "
                    f"use at most {count.bit_length() - 1}",
                )


def resolve_paths(section: AnySection, base: Path) -> AnySection:
    """`section` with every path to a local file made absolute; Hub ids and generators stay as they are."""
    base = base.resolve()
    changed: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        marks = [*field.metadata, *(mark for kind in get_args(field.annotation) for mark in _marks(kind))]
        if isinstance(value, str) and (LOCAL in marks or LOCAL_IF_THERE in marks):
            local = LOCAL in marks and not is_url(value)  # a store may be either
            new: Any = str(base / value) if local or _is_there(base / value) else value
        elif isinstance(value, Section):
            new = resolve_paths(value, base)
        elif isinstance(value, dict):
            new = {key: resolve_paths(item, base) if isinstance(item, Section) else item for key, item in value.items()}
        else:
            continue
        changed |= {name: new} if new != value else {}
    return section.model_copy(update=changed) if changed else section


def _marks(annotation: Any) -> tuple[Any, ...]:
    marks: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
    return marks


def _is_there(path: Path) -> bool:
    try:
        return bool(matching(path))
    except (OSError, ValueError):
        return False  # too long a name, or a NUL in it: whoever opens it says so


def dump_config(config: RunConfig, base: Path) -> str:
    """YAML of the configuration, with the versions it ran with under `versions` (ignored when it is read again)."""
    values: dict[str, Any] = config.model_dump(mode="json")
    if len(config.mixture) == 1:
        del values["split"]["balance"]  # which is refused where there is nothing to balance
    return yaml.safe_dump({**values, "versions": versions(base)}, sort_keys=False, allow_unicode=True, width=120)


def versions(base: Path) -> dict[str, str]:
    """Python, the packages that decide a result, and the commit of the folder that holds the configuration."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found["merit" if name == "merit-tuning" else name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit(base)
    return found | ({"git_commit": commit} if commit else {})


def _git_commit(folder: Path) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
