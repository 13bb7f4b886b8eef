"""Section `calibration`: what a dataset's gradient is measured on (the calibration set), and how it is kept."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from merit.config.sections import ModelConfig, Section, Seed


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


AUTO_EXAMPLES = 1024
AUTO_UNTIL = 0.9


class CalibrationConfig(Section):
    """The calibration set and the sketch. `examples: auto` is short for {examples: 1024, until: 0.9}."""

    examples: int = Field(default=200, ge=2, description="Examples per dataset (published: 200), or `auto`.")
    until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Double the examples each round, and stop before `examples` once the partition is this stable: the "
        "axes found on half of them capture this share of the conflict in the other half. Default: use all.",
    )
    sketch: Literal["fold", "flat", "full"] = Field(
        default="fold",
        description="How to store a mean gradient: signed fold, every s-th coordinate as published (flat), or full.",
    )
    fold: int = Field(
        default=100, ge=1, description="How many input columns to sum, with random signs, into one (sketch: fold)."
    )
    stride: int = Field(default=5, ge=1, description="Keep every s-th coordinate (sketch: flat; published: 5).")
    offset: int = Field(default=0, ge=0, description="First coordinate kept (sketch: flat).")
    seed: Seed = Field(default=0, description="Seed of the fold's signs and buckets.")
    parameters: Annotated[str, AfterValidator(_regex)] | None = Field(
        default=None,
        description="Regular expression: measure only parameters whose name it matches (`layers\\.1\\d\\.`, "
        "`lora_`, `mlp`). Default: all trained parameters.",
    )
    recompute: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: takes much less memory and more time.",
    )
    hashed: int | None = Field(
        default=None,
        ge=1024,
        description="Hash the sketch once more, to this many numbers per gradient (65536 is 256 kB). Conflict then "
        "has no explanation layer by layer.",
    )
    proxy: ModelConfig | None = Field(
        default=None,
        description="Measure on this smaller model of θ0's family; it must have the same tokenizer. `merit agree` "
        "tests whether both find the same conflict.",
    )
    batch_tokens: int = Field(default=2048, ge=1, description="Tokens per forward pass, padding included.")

    @model_validator(mode="before")
    @classmethod
    def _from_auto(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("examples") == "auto":
            return {"until": AUTO_UNTIL} | value | {"examples": AUTO_EXAMPLES}
        return value
