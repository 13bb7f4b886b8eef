"""Which of TRL's arguments a user may set, and what to use instead of the others."""

from __future__ import annotations

import difflib
import typing
import warnings
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import SFTConfig

from merit.base.errors import InputError
from merit.config.train import TrainConfig

# What merit decides itself; a `train.trl` key that repeats one would be ignored or break resuming.
_OWNED = {
    "output_dir": "the run directory decides",
    "max_length": "set `train.max_length`",
    "learning_rate": "set `train.learning_rate`",
    "num_train_epochs": "set `train.epochs`",
    "max_steps": "set `train.epochs`",
    "per_device_train_batch_size": "set `train.batch_tokens` and `train.micro_batch_tokens`",
    "gradient_accumulation_steps": "set `train.batch_tokens` and `train.micro_batch_tokens`",
    "bf16": "set `train.precision`",
    "fp16": "set `train.precision`",
    "seed": "set `seed`",
    "data_seed": "set `seed`",
    "save_strategy": "set `train.checkpoint_minutes`",
    "save_steps": "set `train.checkpoint_minutes`",
    "save_total_limit": "merit keeps the newest two",
    "save_only_model": "merit resumes from what is saved",
    "resume_from_checkpoint": "merit resumes by itself",
    "dataset_kwargs": "merit encodes the data itself",
    "packing": "merit batches by tokens itself",
    "padding_free": "merit batches by tokens itself",
    "assistant_only_loss": "merit masks the labels itself",
    "completion_only_loss": "merit masks the labels itself",
    "eval_strategy": "merit evaluates after training",
    "trust_remote_code": "set `model.trust_remote_code`",
    "push_to_hub": "push the merged model when it is done",
}

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
# Whether these can be met is for the machine that trains to say, which need not be this one.
_HARDWARE = ("tf32", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "use_cpu")


def check_trl(config: TrainConfig) -> None:
    """Checks `train.trl` against SFTConfig's fields and their values, before anything is trained.

    Raises:
        InputError: an unknown argument, or one that merit owns, or a value that TRL refuses; names it and what to use
            instead.
    """
    known = {item.name for item in fields(SFTConfig)}
    types = typing.get_type_hints(SFTConfig)
    for key, value in config.trl.items():
        if key in _OWNED:
            raise InputError(f"not here: {_OWNED[key]}", field=f"train.trl.{key}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"TRL's SFTConfig has no such argument{hint}", field=f"train.trl.{key}")
        _check_value(key, value, types[key])


def _check_value(key: str, value: Any, kind: Any) -> None:
    """The type that TRL declares, then TRL's own checks of this argument alone."""
    field = f"train.trl.{key}"
    try:
        TypeAdapter(dict[str, kind], config=_STRICT).validate_python({key: value})
    except ValidationError as error:
        raise InputError(error.errors(include_url=False)[0]["msg"], field=field) from None
    if key in _HARDWARE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            SFTConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", key: value})
        except (ValueError, TypeError, ImportError, OSError, AttributeError, LookupError) as error:
            raise InputError(" ".join(str(error).split()), field=field) from None
