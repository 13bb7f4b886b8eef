"""Which part of a vision-language model a parameter belongs to, by its name."""

from __future__ import annotations

import re

from merit.config.model import Role

FROZEN: tuple[Role, ...] = ("vision",)  # the published recipe: the vision tower stays as it is
# Asked first: some projectors live inside the tower (Qwen-VL's `visual.merger`).
_PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|mm_projector|connector|merger|deepstack_merger_list|image_newline|modality_projection"
    r"|embed_vision|aligner|view_separator|qformer|perceiver_resampler)(\.|$)"
)
_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|vision_backbone|image_encoder)(\.|$)")


def role_of(name: str) -> Role:
    """The role of the parameter `name`; what is neither tower nor projector is the language model."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"
