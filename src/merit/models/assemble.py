"""A vision tower and a language model, joined by a new projector in the LLaVA architecture.

Nothing is learned here. The towers' weights are copied, the projector's are drawn from a seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from merit.base.errors import InputError, first_line
from merit.data.template import template_of
from merit.models.loading import quiet_transformers

IMAGE_TOKEN = "<image>"
# Lets a template that knows only text be given a content of parts, as servers and benchmarks do.
_FLATTEN = (
    "{%- set flat = namespace(turns=[]) -%}{%- for turn in messages -%}{%- set said = namespace(text='') -%}"
    "{%- if turn['content'] is string -%}{%- set said.text = turn['content'] -%}{%- else -%}"
    "{%- for part in turn['content'] -%}{%- set said.text = said.text + "
    "('" + IMAGE_TOKEN + "' if part['type'] == 'image' else part['text']) -%}{%- endfor -%}{%- endif -%}"
    "{%- set flat.turns = flat.turns + [dict(turn, content=said.text)] -%}{%- endfor -%}"
    "{%- set messages = flat.turns -%}"
)
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def assemble(language: Path, tower: Path, target: Path, *, seed: int = 0, weights: bool = True) -> None:
    """Writes the joined model into the folder `target`; without `weights`, only what encoding needs.

    Args:
        language: a causal language model.
        tower: a CLIP or SigLIP model, whole or its vision part, with its image processor.

    Raises:
        InputError: a tower of another kind, or one without an image processor.
    """
    quiet_transformers()
    vision = _vision_config(tower)
    tokenizer = AutoTokenizer.from_pretrained(str(language), local_files_only=True)
    tokenizer.chat_template = _FLATTEN + template_of(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    try:
        images = AutoImageProcessor.from_pretrained(str(tower), local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise InputError(f"no image processor: {first_line(error)}", file=tower) from error
    text = AutoConfig.from_pretrained(str(language), local_files_only=True)
    clip = vision.model_type == _TOWERS["clip"]
    strategy = "default" if clip else "full"  # CLIP puts a summary token before its patches
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    if weights:
        _join(config, language, tower, len(tokenizer), seed).save_pretrained(target)
    else:
        config.architectures = ["LlavaForConditionalGeneration"]
        config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    images.save_pretrained(target)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(clip),
    }
    (target / "processor_config.json").write_text(json.dumps(processor, indent=2))


def _vision_config(tower: Path) -> Any:
    config = AutoConfig.from_pretrained(str(tower), local_files_only=True)
    if config.model_type in _TOWERS:
        config = config.vision_config
    if config.model_type not in _TOWERS.values():
        raise InputError(
            f"a {config.model_type} cannot be joined; use a CLIP or SigLIP model",
            file=tower,
            field="prepare.vision_tower",
        )
    return config


def _join(config: LlavaConfig, language: Path, tower: Path, vocabulary: int, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    text = AutoModelForCausalLM.from_pretrained(str(language), dtype=torch.float32, local_files_only=True)
    vision = AutoModel.from_pretrained(str(tower), dtype=torch.float32, local_files_only=True)
    vision = getattr(vision, "vision_model", vision)
    model.model.language_model.load_state_dict(text.model.state_dict())
    if not config.tie_word_embeddings:
        model.lm_head.load_state_dict(text.lm_head.state_dict())
    missing, spare = model.model.vision_tower.load_state_dict(vision.state_dict(), strict=False)
    if missing:
        raise InputError(f"`{missing[0]}` and {len(missing) - 1} more are missing in the tower", file=tower)
    del spare  # a pooling head that LLaVA does not use
    if vocabulary > config.text_config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    return model
