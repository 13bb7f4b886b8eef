"""What a study compares: a splitter, a training budget and a merge, under one name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from merit.base import extensions
from merit.config.merge import PUBLISHED
from merit.config.section import Section, refused
from merit.config.split import SplitterName

FOREIGN_RULES = ("ties", "dare_ties")  # mergekit's
if TYPE_CHECKING:
    StudyRule = str
else:
    StudyRule = Literal[(*extensions.names("rules"), *FOREIGN_RULES)]
Scale = Annotated[float, Field(gt=0, le=10)]

PULLED = [0.3, 0.5, 0.7, 0.85, 1.0]  # α of joint training pulled back to θ0
STRETCHED = [0.7, 1.0, 1.5, 2.0]  # β of a merge: averaging has shortened it already
MIXED = [0.7, 1.0, 1.5]  # β of a curvature-aware merge, which may run either way


class MethodConfig(Section):
    """One method. Methods that train the same branches share them: cells are known by their content."""

    splitter: SplitterName = Field(description="`single` is joint training, `replicate` a uniform soup.")
    axes: int | Literal["auto"] = Field(default=1, description="K = 2^axes groups; `auto` chooses by the evidence.")
    copies: int | None = Field(default=None, ge=2, le=16, description="Joint runs in a soup (`replicate`).")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the data, as a multiple of `train.epochs`.")
    rate: float = Field(default=1.0, gt=0, le=100, description="Learning rate, as a multiple of `train.learning_rate`.")
    pull: float = Field(default=0.0, ge=0, description="Weight decay toward θ0.")
    merge: StudyRule = Field(default=PUBLISHED, description="How to merge the branches; the last two need mergekit.")
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="Also evaluate θ0 + β(θ − θ0) for each β; 1 is the method.",
    )
    pool: str | None = Field(
        default=None, description="Methods of one pool are settings of one method; validation chooses among them."
    )

    @model_validator(mode="after")
    def _fits(self) -> MethodConfig:
        problems = []
        splitter = self._splitter
        if splitter.needs_file:
            problems.append((("splitter",), f"`{self.splitter}` needs a file of groups, which a study has none of"))
        if (self.copies is not None) != (splitter.whole_mixture and not splitter.one_group):
            problems.append((("copies",), "a soup (`replicate`) needs it, and nothing else has it"))
        if self.axes == "auto" and splitter.role != "method":
            problems.append((("axes",), f"`auto` is for methods; `{self.splitter}` is a control"))
        if isinstance(self.axes, int) and not 1 <= self.axes <= 6:
            problems.append((("axes",), "must be 1 to 6, or `auto`"))
        if not self.is_published and splitter.one_group:
            problems.append((("merge",), "joint training has one branch: there is nothing to merge"))
        if problems:
            raise refused(problems)
        return self

    @property
    def _splitter(self) -> Any:
        return extensions.load("splitters", self.splitter)

    @property
    def is_published(self) -> bool:
        """Whether branches are averaged as the paper does."""
        return self.merge == PUBLISHED

    @property
    def groups(self) -> int | None:
        """How many branches, None where the evidence decides."""
        if self._splitter.one_group:
            return 1
        if self.copies is not None:
            return self.copies
        return None if self.axes == "auto" else 2**self.axes

    @property
    def passes(self) -> float:
        """Training tokens, as a multiple of one joint run at `epochs: 1`."""
        return self.epochs * (self.copies or 1)


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
