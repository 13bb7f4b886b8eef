"""A study file: methods × budgets × seeds, and what they are compared on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from merit.base import extensions
from merit.config.calibration import CalibrationConfig
from merit.config.launch import LaunchConfig
from merit.config.run import draws, trained_by
from merit.config.sections import (
    PUBLISHED,
    Balance,
    Centre,
    DatasetConfig,
    Location,
    ModelConfig,
    RuleConfig,
    Scale,
    Section,
    Seed,
    SplitterName,
    TrainConfig,
    refused,
)

FOREIGN_RULES = ("ties", "dare_ties")  # mergekit's
if TYPE_CHECKING:
    StudyRule = str
else:
    StudyRule = Literal[(*extensions.names("rules"), *FOREIGN_RULES)]

PULLED = [0.3, 0.5, 0.7, 0.85, 1.0]  # α of joint training pulled back to θ0
STRETCHED = [0.7, 1.0, 1.5, 2.0]  # β of a merge: averaging has shortened it already
MIXED = [0.7, 1.0, 1.5]  # β of a curvature-aware merge, which may run either way


TRAINING = ("splitter", "axes", "copies", "epochs", "rate", "pull")  # what a method's branches are trained by
ADDED = ("draw", "machines", "rounds", "carry_optimizer")  # as well, where they differ from their default


class MethodConfig(Section):
    """One method. Methods that train the same branches share them: cells are known by their content."""

    splitter: SplitterName = Field(
        description="`single` is joint training, `replicate` a uniform soup. Give this or `branches`."
    )
    axes: int | Literal["auto"] = Field(default=1, description="K = 2^axes groups; `auto` chooses by the evidence.")
    draw: int = Field(default=1, ge=1, description="Which draw of random groups (`random`); 1 is that of the seed.")
    copies: int | None = Field(default=None, ge=2, le=16, description="Joint runs in a soup (`replicate`).")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the data, as a multiple of `train.epochs`.")
    rate: float = Field(default=1.0, gt=0, le=100, description="Learning rate, as a multiple of `train.learning_rate`.")
    pull: float = Field(default=0.0, ge=0, description="Weight decay toward θ0.")
    machines: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Joint training on so many data-parallel machines: as many times the batch, and so as few steps as "
        "one of as many branches takes.",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Train the branches in so many parts; after each they are merged by `merge`, and go on from there.",
    )
    carry_optimizer: bool = Field(default=True, description=TrainConfig.model_fields["carry_optimizer"].description)
    branches: str | None = Field(
        default=None,
        description="Train nothing: merge the branches of this method once more. What it trains is that method's.",
    )
    merge: StudyRule = Field(
        default=PUBLISHED,
        description="How to merge the branches, e.g. `regmean` or {rule: regmean, ridge: 0.1}; the last two need "
        "mergekit.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Ridge of the merge. Default: validation chooses among `curvature.ridge`; where a rule looks at "
        "tensors alone, its own default.",
    )
    also: list[RuleConfig] = Field(
        default_factory=list,
        description="Further rules to merge the same branches by, e.g. [regmean]; each is a method NAME-RULE.",
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="Also evaluate θ0 + β(θ − θ0) for each β; 1 is the method.",
    )
    pool: str | None = Field(
        default=None, description="Methods of one pool are settings of one method; validation chooses among them."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_rule(cls, value: Any) -> Any:
        merge = value.get("merge") if isinstance(value, dict) else None
        if isinstance(merge, dict) and "rule" in merge and set(merge) <= {"rule", "ridge"}:
            return {**value, "merge": merge["rule"], "ridge": merge.get("ridge")}
        return value

    @model_validator(mode="after")
    def _fits(self) -> MethodConfig:
        problems = []
        splitter = self._splitter
        if splitter.needs_file:
            problems.append((("splitter",), f"`{self.splitter}` needs a file of groups, which a study does not take"))
        if (self.copies is not None) != (splitter.whole_mixture and not splitter.one_group):
            problems.append((("copies",), "a soup (`replicate`) needs this field, and no other method takes it"))
        if self.axes == "auto" and splitter.role != "method":
            problems.append((("axes",), f"`auto` is for methods; `{self.splitter}` is a control"))
        if isinstance(self.axes, int) and not 1 <= self.axes <= 6:
            problems.append((("axes",), "must be 1 to 6, or `auto`"))
        if not self.is_published and splitter.one_group:
            problems.append((("merge",), "joint training has one branch: there is nothing to merge"))
        if self.draw > 1 and not draws(self.splitter):
            problems.append((("draw",), "only random groups are drawn; remove this key"))
        if self.machines > 1 and not splitter.one_group:
            problems.append((("machines",), "only joint training (`single`) runs data-parallel; remove this key"))
        problems += [(("rounds",), why) for why in self._no_rounds()]
        if self.rounds == 1 and not self.carry_optimizer:
            problems.append((("carry_optimizer",), "one round has no merge to carry anything over; remove this key"))
        if problems:
            raise refused(problems)
        return self

    def _no_rounds(self) -> Iterator[str]:
        """Why the method cannot be trained in the rounds that it asks for."""
        if self.rounds == 1:
            return
        if self._splitter.whole_mixture:
            yield "only the branches of groups are merged in rounds; joint training and soups have none"
        elif self.merge in FOREIGN_RULES or not extensions.load("rules", self.merge).of_weights_alone:
            yield f"`{self.merge}` merges once; rounds need a rule that reads weights alone, such as tokens or actmat"

    @property
    def _splitter(self) -> Any:
        return extensions.load("splitters", self.splitter)

    @property
    def is_published(self) -> bool:
        """Whether branches are averaged as the paper does."""
        return self.merge == PUBLISHED

    @property
    def groups(self) -> int | None:
        """How many branches; None if the evidence decides."""
        if self._splitter.one_group:
            return 1
        if self.copies is not None:
            return self.copies
        return None if self.axes == "auto" else 2**self.axes

    @property
    def training(self) -> tuple[Any, ...]:
        """What its branches depend on besides the seed and the budget."""
        added = [(name, value) for name in ADDED if (value := getattr(self, name)) != _default(name)]
        rule = [(self.merge, self.ridge)] if self.rounds > 1 else []
        return (*(getattr(self, name) for name in TRAINING), *added, *rule)

    @property
    def passes(self) -> float:
        """Training tokens, as a multiple of one joint run at `epochs: 1`."""
        return self.epochs * (self.copies or 1)


def spell_out(methods: dict[str, Any]) -> dict[str, Any]:
    """The methods as a file has them, with `also` and `branches` written out.

    A method of `also` becomes one with `branches`, and that one gets what the other trains by. What is malformed stays
    as it is, for the schema to refuse.

    Raises:
        PydanticCustomError: a name is used twice; no such method; a key that contradicts the branches.
    """
    problems: list[tuple[Location, str]] = []
    found: dict[str, Any] = {}
    for name, item in methods.items():
        also = item.get("also") if isinstance(item, dict) else None
        rules = [_rule(entry) for entry in also] if isinstance(also, list) else []
        if not rules or None in rules:
            found[name] = item
            continue
        found[name] = {key: value for key, value in item.items() if key != "also"}
        if _in_rounds(item):
            problems.append(((name, "also"), _ROUNDS_HAVE_A_RULE))
            continue
        scales = {"scales": item["scales"]} if "scales" in item else {}
        for index, (entry, rule) in enumerate(zip(also or [], rules, strict=True)):
            further = f"{name}-{rule}"
            if further in methods or further in found:
                problems.append(((name, "also", index), f"`{further}` is also the name of another method"))
            found[further] = {"branches": name, "merge": entry, **scales}
    chain = {name: _text(item, "branches") for name, item in found.items()}
    for name, item in found.items():
        if chain[name] is None:
            continue
        try:
            source = found[trained_by(name, chain)]
        except ValueError as error:
            problems.append(((name, "branches"), str(error)))
            continue
        if _in_rounds(source):
            problems.append(((name, "branches"), _ROUNDS_HAVE_A_RULE))
        keys = (*TRAINING, *ADDED)
        theirs = {key: source[key] for key in keys if key in source} if isinstance(source, dict) else {}
        for key in keys:
            if key in item and item[key] != theirs.get(key, _default(key)):
                problems.append(((name, key), f"the branches of `{chain[name]}` are trained already; remove this key"))
        found[name] = {**item, **theirs}
    if problems:
        raise refused(problems)
    return found


_ROUNDS_HAVE_A_RULE = (
    "branches in rounds are trained by their own rule, and merged by it alone: give every rule a method with `rounds`"
)


def _in_rounds(item: Any) -> bool:
    return isinstance(item, dict) and item.get("rounds", 1) != 1


def _default(key: str) -> Any:
    return MethodConfig.model_fields[key].default


def _rule(entry: Any) -> str | None:
    """The rule of an entry of `also`, where there is such a rule."""
    name = entry if isinstance(entry, str) else _text(entry, "rule")
    return name if name in extensions.names("rules") else None


def _text(item: Any, key: str) -> str | None:
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, str) else None


def standard_methods() -> dict[str, MethodConfig]:
    """The published methods and baselines, and the controls that the paper lacks.

    Long rays are for the methods that the figures follow; measuring a point costs as much as training for some steps.
    """
    one = MethodConfig
    found = {
        "joint": one(splitter="single", scales=PULLED, pool="joint"),
        "joint-0.5ep": one(splitter="single", epochs=0.5),
        "joint-2ep": one(splitter="single", epochs=2),
        "joint-slow": one(splitter="single", rate=0.5, scales=[0.7, 1.0], pool="joint"),
        "joint-fast": one(splitter="single", rate=2, scales=[0.5, 0.7, 1.0], pool="joint"),
        "joint-pull-1": one(splitter="single", pull=5, pool="joint-pull"),
        "joint-pull-2": one(splitter="single", pull=20, pool="joint-pull"),
        "adversarial-2": one(splitter="adversarial", axes=1, scales=[1.0, 1.5]),
        "kmeans-4": one(splitter="kmeans", axes=2, scales=[1.0, 1.5]),
    }
    for axes in (1, 2, 3):
        scales = STRETCHED if axes == 2 else [1.0, 1.5]
        found[f"random-{2**axes}"] = one(splitter="random", axes=axes, scales=scales, pool="random")
        found[f"merit-{axes}d"] = one(splitter="pca", axes=axes, scales=scales, pool="merit")
        found[f"soup-{axes + 1}"] = one(splitter="replicate", copies=axes + 1, scales=[0.7, 1.0], pool="soup")
    found["merit-auto"] = one(splitter="pca", axes="auto", scales=[1.0, 1.5])
    found["merit-2d-fast"] = one(splitter="pca", axes=2, rate=2, scales=STRETCHED, pool="merit")
    for rule in ("fisher", "regmean"):
        found[f"merit-2d-{rule}"] = one(splitter="pca", axes=2, merge=rule, scales=MIXED, pool="merit-curved")
    found["random-4-regmean"] = one(splitter="random", axes=2, merge="regmean", scales=MIXED)
    found["merit-2d-ties"] = one(splitter="pca", axes=2, merge="ties", scales=STRETCHED)
    found["merit-2d-dare"] = one(splitter="pca", axes=2, merge="dare_ties", scales=STRETCHED)
    return found


Budget = Annotated[float, Field(gt=0, le=1)]
MEASURED = ("drift", "general text")  # parts of retention that are no datasets
Share = Annotated[float, Field(ge=0, le=1)]


class WarmupConfig(Section):
    """Makes θ0: warms `model` up jointly, or trains a small Llama from random weights, without a download."""

    vocabulary: int = Field(
        default=2048, ge=300, le=65536, description="Vocabulary of a fresh model's BPE, trained on the datasets."
    )
    hidden: int = Field(default=128, ge=16, le=2048, description="Width of a fresh model.")
    layers: int = Field(default=4, ge=1, le=64, description="Layers of a fresh model.")
    heads: int = Field(default=4, ge=1, le=64, description="Attention heads; must divide the width.")
    intermediate: int = Field(default=384, ge=16, le=8192, description="Width of the MLP.")
    examples: int = Field(default=200, ge=8, description="Examples of each dataset of `retention`.")
    mixture_examples: int = Field(
        default=24,
        ge=8,
        description="Examples of each dataset of the mixture, enough to learn the format. If θ0 learns more, tuning "
        "has nothing to teach, and all methods look alike.",
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="Recipe of the warm-up.")

    @model_validator(mode="after")
    def _heads_divide(self) -> WarmupConfig:
        if self.hidden % (2 * self.heads):
            raise refused([(("heads",), f"{self.heads} heads do not divide a width of {self.hidden} evenly")])
        return self


class FacesConfig(Section):
    """How much to measure. Validation chooses α, β and rates; test is only reported."""

    validation: int = Field(default=8, ge=2, description="Held-out examples per dataset to choose α, β and rates.")
    test: int = Field(default=16, ge=2, description="Other held-out examples per dataset to report.")
    drift: int = Field(
        default=16, ge=0, le=512, description="Prompts that θ0 answers; half are for validation. 0: none."
    )
    text: int = Field(
        default=0,
        ge=0,
        le=24,
        description="Passages of plain English to measure retention on; half are for validation. For a θ0 that knows "
        "English.",
    )
    max_new_tokens: int = Field(default=48, ge=1, description="Longest answer of θ0, in tokens.")
    batch_tokens: int = Field(default=8192, ge=1, description="Tokens per forward pass, padding included.")


class QuestionConfig(Section):
    """Does conflict predict harm? Tunes θ0 on every dataset alone, and looks at all the others."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the one dataset.")
    rate: float = Field(default=1.0, gt=0, le=100, description="Learning rate, as a multiple of `train.learning_rate`.")
    budget: str | None = Field(default=None, description="Whose data to use. Default: the largest budget's.")
    seeds: int | None = Field(default=None, ge=1, description="Use only this many seeds, from the first. Default: all.")


class CurvatureConfig(Section):
    """Curvature-aware merges (`merge: fisher`, `merge: regmean`)."""

    examples: int = Field(default=64, ge=2, description="Training examples used to estimate each branch's curvature.")
    ridge: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        default_factory=lambda: [0.1, 1.0],
        min_length=1,
        description="Pull toward the token average, relative to the mean curvature; validation chooses.",
    )


class StudyConfig(Section):
    """What a study file holds. Paths are relative to the file's own folder."""

    name: str = Field(default="study", pattern=r"^[\w .,\-]{1,80}$", description="Title of the tables.")
    model: ModelConfig | None = Field(
        default=None, description="θ0, or the model that `warmup` starts from. Unset: a fresh small model."
    )
    warmup: WarmupConfig | None = Field(default=None, description="Make θ0 first.")
    mixture: dict[str, DatasetConfig] = Field(min_length=2, description="The datasets to tune on, by name.")
    unseen: dict[str, DatasetConfig] = Field(default_factory=dict, description="Measured, never trained on.")
    retention: dict[str, DatasetConfig] = Field(
        default_factory=dict,
        description="What θ0 can already do: measured, never tuned on. A warm-up trains on these datasets. Drift is "
        "measured on θ0's answers to their prompts; without them, to general prompts.",
    )
    held_out_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of each dataset's rows held out.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="The recipe that every method shares.")
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig, description="Gradients and sketches.")
    centre: Centre = Field(default="columns", description="How to centre the similarity matrix, as `split.centre`.")
    balance: Balance = Field(default="samples", description="What a cut halves, as `split.balance`.")
    seeds: list[Seed] = Field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        min_length=1,
        description="Each seed draws new generated datasets, training order and random groups.",
    )
    budgets: dict[str, Budget] = Field(
        default_factory=lambda: {"whole": 1.0},
        min_length=1,
        description="Name → share of each dataset's training examples.",
    )
    methods: dict[str, MethodConfig] = Field(
        default_factory=standard_methods, min_length=2, description="Methods to compare, by name. Default: all."
    )
    reference: str = Field(default="joint", description="The method to compare others with.")
    subjects: list[str] = Field(
        default_factory=list,
        description="Methods to test against the reference (Holm over all). Default: those that split by conflict.",
    )
    faces: FacesConfig = Field(default_factory=FacesConfig, description="How much to measure.")
    curvature: CurvatureConfig = Field(default_factory=CurvatureConfig, description="Fisher and RegMean merges.")
    question: QuestionConfig | None = Field(
        default=None, description="Test whether conflict predicts harm. Unset: no test."
    )
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description="Where jobs run.")
    keep: Literal["all", "none"] = Field(
        default="none", description="`none` removes a cell's weights once nothing needs them."
    )
    draws: int = Field(default=2000, ge=200, le=100_000, description="Bootstrap draws.")
    output: str | None = Field(default=None, description="The study's directory. Default: runs/<name of this file>.")

    @field_validator("methods", mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        return spell_out(value) if isinstance(value, dict) else value

    @field_validator("seeds", mode="after")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _across_fields(self) -> StudyConfig:
        problems = [*self._wrong_model(), *self._wrong_names(), *self._wrong_methods()]
        if problems:
            raise refused(problems)
        return self

    def trained_by(self, name: str) -> str:
        """The first method that has the same branches as the method `name`."""
        wanted = self.methods[name].training
        return next(other for other, item in self.methods.items() if item.training == wanted)

    def _wrong_model(self) -> Iterator[tuple[Location, str]]:
        if self.model is None and self.warmup is None:
            yield ("model",), "give `model`, or `warmup` for a fresh small one"
        if self.train.lora is not None:
            yield ("train", "lora"), "a study compares full fine-tuning; leave it unset"
        if not self.train.carry_optimizer:
            said = "in a study each method has its own: give `methods.NAME.carry_optimizer`"
            yield ("train", "carry_optimizer"), said
        if self.train.rounds > 1:
            yield ("train", "rounds"), "in a study each method has its own: give `methods.NAME.rounds`"
        if self.warmup is not None and self.warmup.train.rounds > 1:
            yield (
                ("warmup", "train", "rounds"),
                "a warm-up trains one branch: there is nothing to merge; remove this key",
            )

    def _wrong_names(self) -> Iterator[tuple[Location, str]]:
        owner: dict[str, str] = {}
        for section in ("mixture", "unseen", "retention"):
            for name in getattr(self, section):
                if "/" in name or "\\" in name or name in (".", "..", *MEASURED) or not name.isprintable():
                    yield (
                        (section, name),
                        "a name must not hold / or \\ or control characters, be a path, `drift` or `general text`",
                    )
                elif name in owner:
                    yield (section, name), f"this is also the name of a dataset in `{owner[name]}`; rename one"
                owner.setdefault(name, section)
        for section in ("budgets", "methods"):
            for name in getattr(self, section):
                if not re.fullmatch(r"[a-z0-9][a-z0-9._\-]{0,39}", name):
                    yield (section, name), "use lower-case letters, digits, ., _ and - (40 at most)"

    def _wrong_methods(self) -> Iterator[tuple[Location, str]]:
        pools: dict[str, int] = {}  # → machines of its first method
        for name, method in self.methods.items():
            if method.pool is not None and pools.setdefault(method.pool, method.machines) != method.machines:
                said = f"methods of the pool `{method.pool}` train on another number of machines; choose another pool"
                yield ("methods", name, "pool"), said
            groups = method.groups
            if name == "base":
                yield ("methods", name), "this is the name of θ0"
            least = extensions.load("splitters", method.splitter).least_datasets(method.axes)
            if groups is not None and least > len(self.mixture):
                yield ("methods", name, "axes"), f"{groups} groups need as many datasets; there are {len(self.mixture)}"
        for name in (self.reference, *self.subjects):
            if name not in self.methods:
                yield ("reference" if name == self.reference else "subjects",), f"no method {name!r} in `methods`"
        if self.question is not None and self.question.budget not in (None, *self.budgets):
            yield ("question", "budget"), f"no budget {self.question.budget!r} in `budgets`"
