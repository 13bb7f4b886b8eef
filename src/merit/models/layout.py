"""Parameter names of vision-language checkpoints differ between versions of transformers; one spelling to compare by.

transformers up to 4.51 saved `language_model.model.layers…` (LLaVA, Gemma 3, Mllama …) or `visual.…` beside
`model.layers…` (Qwen2-VL …); 4.52 moved both below `model.`; 5.x also dropped the `vision_model` level of a CLIP tower.
Tools that match raw names have re-initialised half a model in silence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from merit.base.errors import InputError
from merit.config.sections import Role

_Rules = tuple[tuple[re.Pattern[str], str], ...]
_LLAVA: _Rules = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|vision_model|multi_modal_projector|image_newline)(?=\.|$)"), r"model.\1"),
)
_QWEN: _Rules = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
_TOWER: _Rules = ((re.compile(r"^(model\.)?vision_tower\.vision_model\."), r"\1vision_tower."),)


@dataclass(frozen=True)
class Layout:
    """The names of one checkpoint. `names` maps the common spelling to the checkpoint's own."""

    generation: str
    names: dict[str, str]


def find_layout(names: Iterable[str]) -> Layout:
    """Reads the generation off the names, and spells every name as the newest transformers does.

    Raises:
        InputError: two names would become one.
    """
    own = list(names)
    rules: _Rules = ()
    if any(name.startswith("language_model.model.") for name in own):
        generation, rules = "LLaVA names of transformers ≤ 4.51", _LLAVA
    elif any(name.startswith("visual.") for name in own):
        generation, rules = "Qwen-VL names of transformers ≤ 4.51", _QWEN
    elif any(name.startswith("model.language_model.") for name in own):
        generation = "vision-language names of transformers ≥ 4.52"
    else:
        generation = "language model"
    common: dict[str, str] = {}
    for name in own:
        spelled = name
        for pattern, replacement in (*rules, *_TOWER):
            spelled = pattern.sub(replacement, spelled)
        if spelled in common:
            raise InputError(f"means the same tensor as {common[spelled]}: two layouts in one checkpoint", field=name)
        common[spelled] = name
    return Layout(generation, common)


FROZEN: tuple[Role, ...] = ("vision", "projector")  # the published recipe trains the language model alone
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


def same_names(mine: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Name in `theirs` → its name in `mine`, both in the common spelling, also where one side lacks the outermost
    module's name: GPT-2's first files have `wte.weight` where today's have `transformer.wte.weight`."""
    outer = {f"{name.split('.', 1)[0]}." for names in (mine, theirs) for name in names if "." in name}
    known = set(mine)
    found = {name: name for name in theirs if name in known}
    taken = set(found)
    for name in theirs:
        if name in found:
            continue
        longer = (prefix + name for prefix in outer)
        shorter = (name.removeprefix(prefix) for prefix in outer if name.startswith(prefix))
        match = next((one for one in (*longer, *shorter) if one in known and one not in taken), None)
        if match is not None:
            found[name] = match
            taken.add(match)
    return found
