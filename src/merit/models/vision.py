"""A vision-language model's image side: what its processor writes for an image, and the pixels that its forward takes.

Built from the image processor (Pillow backend: the same pixels on every machine) and the tokenizer; a processor's video
part, which needs torchvision, is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from merit.base.errors import InputError, first_line
from merit.base.files import is_own, read_json
from merit.base.record import fingerprint
from merit.data.image import decode

_TEXT_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets"}
SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def is_vision_model(folder: Path) -> bool:
    """Whether the model in `folder` takes images and text."""
    config = read_json(folder / "config.json")
    return (
        isinstance(config, dict)
        and isinstance(config.get("vision_config"), dict)
        and config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )


class ModelImages:
    """The image side of a model, as encoding and batches need it; an attribute of the tokenizer and of the model."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._one = lru_cache(maxsize=4096)(self._expansion)

    @property
    def token(self) -> str:
        """What stands for an image in the chat template's text."""
        return str(self.processor.image_token)

    @cached_property
    def reserved(self) -> frozenset[str]:
        """Texts that mean an image to the model."""
        own = getattr(self.processor.tokenizer, "image_token", None)
        return frozenset(str(token) for token in (self.token, own) if token)

    @cached_property
    def token_ids(self) -> frozenset[int]:
        """The tokens whose embedding is an image's."""
        return frozenset(self.processor.tokenizer.convert_tokens_to_ids(sorted(self.reserved)))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(type(self.processor).__name__, self.processor.image_processor.to_dict(), self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        plain = (int, float, str, bool, type(None))
        return {key: value for key, value in sorted(vars(self.processor).items()) if isinstance(value, plain)}

    def expansions(self, sizes: Sequence[tuple[int, int]]) -> list[str]:
        """What the processor writes for each image of one example; it depends on sizes alone, (width, height)."""
        return [self._one(size, len(sizes) > 1) for size in sizes]

    def _expansion(self, size: tuple[int, int], several: bool) -> str:
        from PIL import Image

        count = 2 if several else 1
        blank = Image.new("RGB", size)
        found = self._process([[blank] * count], return_text_replacement_offsets=True)
        return str(found["text_replacement_offsets"][0][0]["replacement"])

    def inputs(self, input_ids: Tensor, images: Sequence[Sequence[bytes]]) -> dict[str, Tensor]:
        """What the forward pass takes beside ids and mask.

        Args:
            input_ids: (rows, tokens) int64.
            images: the images of each row, in order.

        Raises:
            InputError: an image is damaged.
        """
        nested = [[decode(content) for content in row] for row in images if row]
        found: dict[str, Tensor] = {}
        if nested:
            whole = self._process(nested, return_tensors="pt", padding=True)
            found = {key: value for key, value in whole.items() if key not in _TEXT_KEYS}
        if self._kinds is not None:
            found[self._kinds] = torch.as_tensor(self.processor.create_mm_token_type_ids(input_ids.tolist()))
        return found

    @cached_property
    def _kinds(self) -> str | None:
        """The model's name for the mask of image tokens, where it wants one."""
        from PIL import Image

        found = self._process([[Image.new("RGB", (64, 64))]])
        return (
            next((key for key in ("mm_token_type_ids", "token_type_ids") if key in found), None)
            if (self.processor.return_mm_token_type_ids)
            else None
        )

    def _process(self, images: list[list[Any]], **options: Any) -> Any:
        text = [self.token * len(row) for row in images]
        try:
            return self.processor(images=images, text=text, **options)
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
            raise InputError(f"the model's image processor refuses an image: {first_line(error)}") from error


def load_images(folder: Path, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> ModelImages:
    """The image side of the model in `folder`.

    Raises:
        InputError: no image processor there, one of an unknown class, or a package that it needs is missing.
    """
    if not any((folder / name).is_file() for name in SIDE_FILES[:2]):
        raise InputError(
            "a vision-language model without an image processor: preprocessor_config.json is missing", file=folder
        )
    try:
        image_processor = AutoImageProcessor.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True, backend="pil"
        )
        whole = getattr(transformers, _processor_class(folder))
        parts = {"image_processor": image_processor, "tokenizer": tokenizer}
        kind = _without(whole, parts)
        settings, _ = kind.get_processor_dict(str(folder), local_files_only=True)
        settings = {key: value for key, value in settings.items() if not key.endswith("_processor")}
        processor = kind.from_args_and_dict([parts.get(name) for name in whole.get_attributes()], settings)
    except Exception as error:  # transformers raises what it likes at a configuration that is damaged
        raise InputError(f"its processor cannot be loaded: {first_line(error)}", file=folder) from error
    if getattr(processor, "image_token", None) is None:
        raise InputError(f"{kind.__name__} has no image token; such models are not supported yet", file=folder)
    if not getattr(tokenizer, "chat_template", None) and isinstance(processor.chat_template, str):
        tokenizer.chat_template = processor.chat_template
    return ModelImages(processor)


def copy_image_files(source: Path, target: Path) -> None:
    """Copies the processor's files byte for byte: without them no server loads the model."""
    for name in SIDE_FILES:
        if is_own(source / name, source) and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def _processor_class(folder: Path) -> str:
    for name in _CONFIGS:
        value = read_json(folder / name) if (folder / name).is_file() else {}
        found = value.get("processor_class") if isinstance(value, dict) else None
        if isinstance(found, str) and hasattr(transformers, found):
            return found
    kind = read_json(folder / "config.json")["model_type"]
    if kind not in PROCESSOR_MAPPING_NAMES:
        raise ValueError(f"no processor is known for {kind!r}")
    return str(PROCESSOR_MAPPING_NAMES[kind])


def _without(kind: Any, parts: dict[str, Any]) -> Any:
    """The processor's class with no other parts than these: its constructor then ignores other arguments."""
    names = [name for name in kind.get_attributes() if name in parts]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: names)})
