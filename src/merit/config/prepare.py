"""Sections `prepare` and `gate`: making θ0 merge-ready, and finding out whether it is, before a run is paid for."""

from __future__ import annotations

from pydantic import Field

from merit.config.mixture import DatasetConfig
from merit.config.model import Role
from merit.config.section import Section


class PrepareStage(Section):
    """One round of joint training on the general mixture. Unset fields come from `train`."""

    freeze: list[Role] = Field(default_factory=list, description="Parts of the model to freeze in this round.")
    epochs: float = Field(default=1, gt=0, description="Passes over the general mixture.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak learning rate.")
    batch_tokens: int | None = Field(default=None, ge=1, description="Mean tokens per optimizer step.")


def _recipe() -> list[PrepareStage]:
    return [
        PrepareStage(freeze=["vision", "language"], learning_rate=1e-3),
        PrepareStage(freeze=["vision"]),
    ]


class PrepareConfig(Section):
    """Basin preparation: the LLaVA recipe for a vision-language model, a short joint warm-up for text."""

    vision_tower: str | None = Field(
        default=None,
        description="A CLIP or SigLIP model (folder or Hub id) to join with the language model `model` through a new "
        "projector, as in LLaVA. Unset: `model` is complete.",
    )
    mixture: dict[str, DatasetConfig] = Field(
        default_factory=dict, description="The general mixture. Default: the run's own, without its held-out rows."
    )
    stages: list[PrepareStage] | None = Field(
        default=None,
        min_length=1,
        description="Rounds, in order. Default for a vision-language model: the projector alone at 1e-3, then "
        "projector and language model; for text a tenth of an epoch.",
    )

    def rounds(self, *, vision: bool) -> list[PrepareStage]:
        """The stages, or their default."""
        if self.stages is not None:
            return self.stages
        return _recipe() if vision else [PrepareStage(epochs=0.1)]


class GateConfig(Section):
    """Go or no-go: trains a pilot of every branch on a small share of its data, and merges the pilots."""

    share: float = Field(default=0.02, gt=0, le=1, description="Share of a branch's data for its pilot.")
    examples: int = Field(default=8, ge=2, description="Held-out examples per dataset to measure the pilots on.")
    points: int = Field(default=5, ge=3, le=101, description="Points on the line between two pilots.")
    max_barrier: float = Field(
        default=0.02, ge=0, description="Highest barrier between two pilots that passes, as a share of θ0's loss."
    )
    enforce: bool = Field(default=True, description="Whether a no stops the run before training.")
