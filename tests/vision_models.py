"""Tiny random vision-language models of every architecture that merit names, with their processors; no downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from four_files import WORDS

KINDS = ("qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "llava", "llava_onevision", "gemma3", "internvl")

_SPECIAL = {
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
                 *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))],
    "smolvlm": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
                *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))],
    "llava": ["<image>"],
    "llava_onevision": ["<image>", "<video>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
}  # fmt: skip
_PLACE = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
}


def _template(kind: str) -> str:
    place = _PLACE.get(kind, "<image>")
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + place + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def tiny_tokenizer(kind: str) -> Any:
    """A byte-level tokenizer with ChatML and the architecture's image tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_SPECIAL[kind]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300 + len(special), special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    extra = {
        "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        "internvl": {"start_image_token": "<img>", "end_image_token": "</img>",
                     "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
    }.get(kind, {})  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_template(kind),
        extra_special_tokens=extra,
    )


def _text(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


_CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "image_size": 32, "patch_size": 8}  # fmt: skip
_QWEN = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 8,
         "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip


def tiny_config(kind: str, tokenizer: Any) -> Any:
    """The architecture's configuration at two layers a part."""
    import transformers as t

    token, size = tokenizer.convert_tokens_to_ids, len(tokenizer)
    if kind == "qwen2_5_vl":
        return t.Qwen2_5_VLConfig(
            text_config=_text(size, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]}),
            vision_config={**_QWEN, "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]},
            image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        )  # fmt: skip
    if kind == "qwen3_vl":
        return t.Qwen3VLConfig(
            text_config=_text(size, head_dim=8, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]}),
            vision_config={**_QWEN, "out_hidden_size": 32, "num_position_embeddings": 16,
                           "deepstack_visual_indexes": [0]},
            image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        )  # fmt: skip
    if kind in ("idefics3", "smolvlm"):
        make = t.Idefics3Config if kind == "idefics3" else t.SmolVLMConfig
        return make(
            text_config={"model_type": "llama", **_text(size)},
            vision_config=_CLIP, image_token_id=token("<image>"), scale_factor=2, pad_token_id=0,
        )  # fmt: skip
    if kind in ("llava", "llava_onevision"):
        make = t.LlavaConfig if kind == "llava" else t.LlavaOnevisionConfig
        tower = {"model_type": "clip_vision_model" if kind == "llava" else "siglip_vision_model", **_CLIP}
        more = {"vision_feature_select_strategy": "default" if kind == "llava" else "full"}
        more |= (
            {"image_grid_pinpoints": [[32, 64], [64, 32]], "video_token_index": token("<video>")}
            if kind != "llava"
            else {}
        )
        return make(
            text_config={"model_type": "llama", **_text(size)},
            vision_config=tower,
            image_token_index=token("<image>"),
            vision_feature_layer=-1,
            **more,
        )
    if kind == "gemma3":
        return t.Gemma3Config(
            text_config=_text(size, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
            vision_config=_CLIP, mm_tokens_per_image=4, image_token_index=token("<image_soft_token>"),
            boi_token_index=token("<start_of_image>"), eoi_token_index=token("<end_of_image>"),
        )  # fmt: skip
    return t.InternVLConfig(
        text_config={"model_type": "qwen2", **_text(size)},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=token("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip


_IMAGE_PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2,
                   "temporal_patch_size": 2, "size": {"shortest_edge": 256, "longest_edge": 2304}},
    "qwen3_vl": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2,
                 "temporal_patch_size": 2, "size": {"shortest_edge": 256, "longest_edge": 2304}},
    "idefics3": {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64},
                 "max_image_size": {"longest_edge": 32}, "do_image_splitting": True},
    "smolvlm": {"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 64},
                "max_image_size": {"longest_edge": 32}, "do_image_splitting": True},
    "llava": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
              "crop_size": {"height": 32, "width": 32}},
    "llava_onevision": {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 32, "width": 32},
                        "image_grid_pinpoints": [[32, 64], [64, 32]]},
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}},
    "internvl": {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 32, "width": 32},
                 "crop_to_patches": True, "min_patches": 1, "max_patches": 2},
}  # fmt: skip
_PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": {"processor_class": "Qwen3VLProcessor"},
    "idefics3": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    "smolvlm": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    "llava": {"processor_class": "LlavaProcessor", "patch_size": 8, "vision_feature_select_strategy": "default",
              "num_additional_image_tokens": 1},
    "llava_onevision": {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16,
                        "vision_feature_select_strategy": "full"},
    "gemma3": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    "internvl": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
}  # fmt: skip


def write_tiny_vlm(kind: str, folder: Path, seed: int = 0) -> Path:
    """Writes the model, tokenizer and processor files, as a download would look."""
    import torch
    from transformers import AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(tiny_config(kind, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_IMAGE_PROCESSORS[kind]))
    (folder / "processor_config.json").write_text(json.dumps(_PROCESSORS[kind]))
    return folder


def write_tiny_tower(folder: Path) -> Path:
    """A random CLIP tower alone, with its image processor: 16 patches an image."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder
