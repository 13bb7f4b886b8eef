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
    target_modules: str | list[str] = Field(default="all-linear", description="Modules to adapt.")


class TrainConfig(Section):
    """Training, run by TRL's SFTTrainer."""

    epochs: float = Field(default=1, gt=0, description="Passes over the data of a branch.")
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak learning rate of AdamW.")
    batch_tokens: int = Field(
        default=16384, ge=1, description="Mean tokens per optimizer step; sets the examples per step."
    )
    micro_batch_tokens: int = Field(
        default=4096, ge=1, description="Tokens per forward pass, padding included; limits memory, changes no result."
    )
    max_length: int = Field(default=2048, ge=8, description="Truncate longer examples at the end, in tokens.")
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps that raise the learning rate."
    )
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="Learning-rate schedule."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    pull: float = Field(
        default=0.0,
        ge=0,
        description="Weight decay toward θ0 instead of zero: each step subtracts rate × pull × (θ − θ0).",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Autocast type; weights and optimizer stay fp32. auto: bf16 where it is fast."
    )
    lora: LoraSection | None = Field(default=None, description="LoRA settings, or null for full fine-tuning.")
    checkpoint_minutes: float = Field(
        default=10, gt=0, description="The most work that a killed branch loses, in minutes."
    )
    snapshots: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Sketches of the weights (512 kB each) to keep during training, for `merit diagnose`. Each takes "
        "about the time of a forward pass. Full fine-tuning only.",
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="Further arguments of TRL's SFTConfig.")
