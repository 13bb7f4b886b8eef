"""Section `calibration`: what a dataset's gradient is measured on, and how it is kept."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from merit.config.model import ModelConfig
from merit.config.section import Section, Seed


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

    examples: int = Field(default=200, ge=2, description="Examples a dataset (published: 200), or `auto`.")
    until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Add examples in rounds of doubling size and stop before `examples` once the partition is this "
        "stable: what half of them finds captures this share of the conflict in the other half. Default: always all.",
    )
    sketch: Literal["fold", "flat", "full"] = Field(
        default="fold",
        description="How a mean gradient is kept: signed fold, every s-th coordinate as published (flat), or whole.",
    )
    fold: int = Field(
        default=100, ge=1, description="Input columns summed, with random signs, into one (sketch: fold)."
    )
    stride: int = Field(default=100, ge=1, description="Keep every s-th coordinate (sketch: flat).")
    offset: int = Field(default=0, ge=0, description="First coordinate kept (sketch: flat).")
    seed: Seed = Field(default=0, description="Seed of the fold's signs and buckets.")
    parameters: Annotated[str, AfterValidator(_regex)] | None = Field(
        default=None,
        description="Regular expression: only parameters whose name contains a match are measured (`layers\\.1\\d\\.`, "
        "`lora_`, `mlp`). Default: all that are trained.",
    )
    recompute: bool = Field(
        default=False,
        description="Run each layer twice instead of keeping its activations: a fraction of the memory, more time.",
    )
    hashed: int | None = Field(
        default=None,
        ge=1024,
        description="Keep only this many numbers a gradient, by hashing the sketch once more (65536 is 256 kB). "
        "Conflict can then not be explained layer by layer.",
    )
    proxy: ModelConfig | None = Field(
        default=None,
        description="Measure on this smaller sibling of θ0, which must have the same tokenizer. `merit agree` says "
        "whether the two find the same conflict.",
    )
    batch_tokens: int = Field(default=2048, ge=1, description="Tokens a forward pass, padding included.")

    @field_validator("proxy", mode="before")
    @classmethod
    def _proxy_from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _from_auto(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("examples") == "auto":
            return {"until": AUTO_UNTIL} | value | {"examples": AUTO_EXAMPLES}
        return value
