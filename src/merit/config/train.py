"""Section `train`: the recipe that every branch, and joint training, shares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from merit.config.section import Section


class LoraSection(Section):
    """LoRA through PEFT; unset means full fine-tuning."""

    r: int = Field(default=16, ge=1, description="Rank.")
    alpha: float = Field(default=32, gt=0, description="Scale: the update is alpha / r · B A.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(default="all-linear", description="Modules that get an adapter.")


class TrainConfig(Section):
    """Training, run by TRL's SFTTrainer."""

    epochs: float = Field(default=1, gt=0, description="Passes over a branch's data.")
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak learning rate of AdamW.")
    batch_tokens: int = Field(
        default=16384, ge=1, description="Tokens an optimizer step, on average; sets the examples a step."
    )
    micro_batch_tokens: int = Field(
        default=4096, ge=1, description="Tokens a forward pass, padding included; bounds memory, changes no result."
    )
    max_length: int = Field(default=2048, ge=8, description="Longer examples are truncated at the end.")
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="Learning-rate schedule."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    pull: float = Field(
        default=0.0,
        ge=0,
        description="Decay of the weights toward θ0 instead of zero: each step takes off rate × pull × (θ − θ0).",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Autocast type; weights and optimizer stay fp32. auto: bf16 where it is fast."
    )
    lora: LoraSection | None = Field(default=None, description="LoRA settings, or null for full fine-tuning.")
    checkpoint_minutes: float = Field(default=10, gt=0, description="What a killed branch loses at most.")
    snapshots: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Sketches of the weights (512 kB each) kept along the way: the trajectories of `merit diagnose`. "
        "Each costs about a forward pass of time. Full fine-tuning only.",
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="Passed to TRL's SFTConfig as they are.")
