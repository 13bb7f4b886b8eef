"""Loads a checked model folder into torch."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from merit.base.errors import InputError, first_line, out_of_memory
from merit.config.sections import Role
from merit.data.encode import IMAGE_TOKENS, POSITIONS, Positions
from merit.models.checkpoint import read_entries
from merit.models.layout import FROZEN, role_of
from merit.models.source import ModelFolder, check_model_folder
from merit.models.vision import ModelImages, is_vision_model, load_images

Precision = Literal["bf16", "fp32"]

_log = logging.getLogger(__name__)
_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|positions_embed|position_embeddings?)\.weight$")


def load_model(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str = torch.float32,
    freeze: Collection[Role] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """A model in `dtype` (`"auto"`: as stored), safetensors only. One that takes images and text carries its
    `ModelImages`. A warning names tensors that the model has no place for.

    Args:
        device: where it goes. None: the best device of this machine.
        freeze: roles whose parameters get no gradient. None: as published, the vision tower and the projector.

    Raises:
        InputError: the folder is not loadable, tensors are missing in it, or nothing is left to train.
    """
    check_model_folder(folder, trust_remote_code=trust_remote_code)
    quiet_transformers()
    vision = is_vision_model(folder)
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    try:
        model, info = kind.from_pretrained(
            str(folder),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises what it likes at a configuration that is damaged
        if out_of_memory(error):
            raise
        raise InputError(f"cannot be loaded: {first_line(error)}", file=folder) from error
    # transformers only warns about tensors that it had to draw at random.
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise InputError(f"the weights lack `{missing[0]}`{more}", file=folder)
    if spare := sorted(info["unexpected_keys"]):
        _log.warning("%s: the model has no place for %d of its tensors (`%s` …)", folder, len(spare), spare[0])
    if freeze and not vision:
        raise InputError("only a vision-language model has parts to freeze", field="model.freeze")
    if vision:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
        setattr(model, IMAGE_TOKENS, load_images(folder, tokenizer, trust_remote_code=trust_remote_code))
        freeze_roles(model, FROZEN if freeze is None else freeze)
    return model.to(device or best_device())


def empty_model(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The modules of a model without its weights, on torch's meta device.

    Raises:
        InputError: the folder is not loadable.
    """
    check_model_folder(folder, trust_remote_code=trust_remote_code)
    kind = AutoModelForImageTextToText if is_vision_model(folder) else AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except Exception as error:  # transformers raises what it likes at a configuration that is damaged
        raise InputError(f"cannot be loaded: {first_line(error)}", file=folder) from error
    return model


def freeze_roles(model: torch.nn.Module, roles: Collection[Role]) -> None:
    """Parameters of these roles get no gradient.

    Raises:
        InputError: no parameter is left.
    """
    for name, parameter in model.named_parameters():
        if role_of(name) in roles:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("every part of the model is frozen, so there is nothing to train", field="model.freeze")


def images_of(model_or_tokenizer: Any) -> ModelImages | None:
    """The image side of a model or of a tokenizer, behind wrappers of DDP and PEFT; None where there is none."""
    model = model_or_tokenizer
    while isinstance(inner := getattr(model, "module", None), torch.nn.Module):
        model = inner
    if callable(base := getattr(model, "get_base_model", None)):
        model = base()
    found: ModelImages | None = getattr(model, IMAGE_TOKENS, None)
    return found


def load_tokenizer(folder: ModelFolder, chat_template: Path | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the user's chat template where one is given, and always with a padding token.

    Raises:
        InputError: no tokenizer in the folder, or no such template file.
    """
    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder.path), trust_remote_code=folder.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library itself raises no narrower one
        raise InputError(f"no tokenizer in this folder: {first_line(error)}", file=folder.path) from error
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise InputError("its chat template is no text", file=folder.path, field="chat_template")
    if chat_template is not None:
        try:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read: {error}", file=chat_template, field="model.chat_template") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if is_vision_model(folder.path):
        images = load_images(folder.path, tokenizer, trust_remote_code=folder.trust_remote_code)
        setattr(tokenizer, IMAGE_TOKENS, images)
    setattr(tokenizer, POSITIONS, positions_of(folder))
    return tokenizer


def positions_of(folder: ModelFolder) -> Positions | None:
    """How many tokens the model can read at once; None if it has no limit, or none is known."""
    try:
        config = AutoConfig.from_pretrained(
            str(folder.path), trust_remote_code=folder.trust_remote_code, local_files_only=True
        )
    except Exception:  # transformers raises what it likes at a damaged configuration: loading the model tells of it
        return None
    return positions_by(config, (name for file in folder.path.glob("*.safetensors") for name in read_entries(file)[0]))


def positions_by(config: PreTrainedConfig, tensors: Iterable[str]) -> Positions | None:
    """As `positions_of`, of a model with this configuration and tensors of these names."""
    config = config.get_text_config()
    count = getattr(config, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    if getattr(config, "rope_parameters", None):
        return Positions(count, table=False)
    # GPT-J and CodeGen compute a table that is in no file.
    table = hasattr(config, "rotary_dim") or any(_TABLE.search(name) for name in tensors)
    return Positions(count, table=True) if table else None


def generation_config_of(folder: Path, *, trust_remote_code: bool = False) -> GenerationConfig:
    """What a model that is loaded from `folder` has as its generation_config."""
    try:
        return GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except OSError:  # there is none
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
        return GenerationConfig.from_model_config(config)


def best_device() -> torch.device:
    """The current accelerator, or the CPU."""
    # A CUDA build names its accelerator on a machine without one, too.
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_precision(wanted: Literal["auto", "bf16", "fp32"]) -> Precision:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32."""
    if wanted != "auto":
        return wanted
    device = best_device()
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = _cpu_has_bf16()
    else:
        fast = True
    return "bf16" if fast else "fp32"


def autocast(precision: Precision) -> Any:
    """The context in which forward passes run; weights stay fp32, matrix products run in bf16 where asked."""
    return torch.autocast(best_device().type, torch.bfloat16, enabled=precision == "bf16")


def free_cached_memory() -> None:
    """Gives the GPU memory of what this process needs no longer back to the machine, for other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def quiet_transformers() -> None:
    """Keeps transformers' own bars and hints off the terminal; merit shows its own bar."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _cpu_has_bf16() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )
