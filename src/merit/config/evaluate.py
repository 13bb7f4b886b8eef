"""Section `evaluate`: what is measured on every model of the run."""

from __future__ import annotations

from pydantic import Field

from merit.config.mixture import DatasetConfig
from merit.config.section import Section


class EvaluateConfig(Section):
    """Held-out loss, exact match, unseen datasets, drift."""

    held_out: int = Field(default=64, ge=1, description="Most held-out examples per dataset for the loss.")
    generate: int = Field(
        default=16, ge=0, description="How many of them to answer by greedy decoding for exact match. 0: none."
    )
    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer of greedy decoding, in tokens.")
    unseen: dict[str, DatasetConfig] = Field(
        default_factory=dict, description="Datasets that no branch trains on; they are only evaluated."
    )
    drift: int = Field(
        default=0,
        ge=0,
        le=32,
        description="General prompts; measures the loss on θ0's own answers to them. 0: none.",
    )
    branches: bool = Field(default=True, description="Also measure the loss of each branch of the main method.")
    batch_tokens: int = Field(default=4096, ge=1, description="Tokens per forward pass, padding included.")
