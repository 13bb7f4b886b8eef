"""`embedded:tiny-llava`: a vision-language model of the LLaVA architecture, small enough to be learned from nothing on
two cores. Made from a seed, not downloaded: `merit prepare` must teach it before it can be asked anything."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from merit.base.kept import made_once

NAME = "tiny-llava"
_VERSION = 2  # of what is made here
# Sixteen patches an image: a third of the tokens that patches of 8 pixels make, and learned in fewer examples.
_SIDE, _PATCH, _WIDTH = 48, 12, 96
_VISION_LAYERS, _TEXT_LAYERS = 3, 2
_SPREAD = 0.06  # standard deviation of the language model's first weights; 1/√width is 0.1
_PATCH_GAIN = 10  # on the first weights of the patch embedding, for pixels between -0.3 and 0
_VOCABULARY = 512
_SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<image>"]
# One token a turn's head, since an example is sixteen tokens of image and a dozen of text.
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": _SIDE},
    "crop_size": {"height": _SIDE, "width": _SIDE},
    # Paper is zero, so that what is drawn on it stands out. Small numbers, and large first weights: Adam moves all
    # weights alike, and the sum over a patch's 432 pixels would change by its own size at every step.
    "image_mean": [0.94, 0.94, 0.94],
    "image_std": [3.0, 3.0, 3.0],
}
_PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "patch_size": _PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def tiny_vlm(cache: Path) -> Path:
    """The folder of the model, made at the first call (a second)."""
    return made_once(cache / f"{NAME}-v{_VERSION}", write_tiny_vlm, holds="config.json")


def write_tiny_vlm(folder: Path) -> None:
    """Writes weights, tokenizer and processor files into `folder`."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from merit.models.loading import quiet_transformers

    quiet_transformers()
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(_config(tokenizer))
    with torch.no_grad():
        model.model.vision_tower.embeddings.patch_embedding.weight.mul_(_PATCH_GAIN)
        places = model.model.vision_tower.embeddings.position_embedding.weight
        places[1:] = torch.from_numpy(_places(_SIDE // _PATCH, _WIDTH))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_IMAGES, indent=2))
    (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR, indent=2))


def _places(side: int, width: int) -> Any:
    """(side², width) float32: waves along both axes, from which a small tower learns places sooner than from noise
    (Beyer et al. 2022, "Better plain ViT baselines")."""
    import numpy as np

    y, x = np.divmod(np.arange(side * side), side)
    speed = 1 / 10 ** np.linspace(0, 2, width // 4)
    angles = [place[:, None] * speed for place in (x, y)]
    return (0.5 * np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)).astype(np.float32)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def _sentences() -> Iterable[str]:
    """Questions and answers of the visual tasks, whose words become tokens."""
    import numpy as np

    from merit.demo.visual import COLOURS, SHAPES, TASKS, WORDS

    for task in TASKS.values():
        made = task.make(np.random.default_rng(0))
        yield from (text for asked in ((made.question, made.answer), *made.more) for text in asked)
    yield "left middle right temple flower top left bottom right yes no"
    yield from (*COLOURS, *SHAPES, *WORDS)


def _config(tokenizer: Any) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "num_hidden_layers": _TEXT_LAYERS,
            "initializer_range": _SPREAD,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "num_hidden_layers": _VISION_LAYERS,
            "num_attention_heads": 4,
            "image_size": _SIDE,
            "patch_size": _PATCH,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        initializer_range=_SPREAD,  # of the projector
        tie_word_embeddings=True,
    )
