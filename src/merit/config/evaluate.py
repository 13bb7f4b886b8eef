"""Section `evaluate`: what is measured on every model of the run."""

from __future__ import annotations

from pydantic import Field

from merit.config.mixture import DatasetConfig
from merit.config.section import Section


class EvaluateConfig(Section):
    """Held-out loss, exact match, unseen datasets, drift."""

    held_out: int = Field(default=64, ge=1, description="Held-out examples a dataset, at most, for the loss.")
    generate: int = Field(
        default=16, ge=0, description="Of them, how many are answered by greedy decoding for exact match. 0: none."
    )
    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer in greedy decoding.")
    unseen: dict[str, DatasetConfig] = Field(
        default_factory=dict, description="Datasets that no branch trains on, measured all the same."
    )
    drift: int = Field(
        default=0,
        ge=0,
        le=32,
        description="General prompts on which the loss of θ0's own answers is measured. 0: none.",
    )
    branches: bool = Field(default=True, description="Also measure the loss of every branch of the main method.")
    batch_tokens: int = Field(default=4096, ge=1, description="Tokens a forward pass, padding included.")
