"""Which of TRL's arguments a user may set, and what to use instead of the others."""

from __future__ import annotations

import difflib
from dataclasses import fields

from trl import SFTConfig

from merit.config.train import TrainConfig
from merit.errors import InputError

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


def check_trl(config: TrainConfig) -> None:
    """Checks `train.trl` against SFTConfig's fields, before anything is trained.

    Raises:
        InputError: an unknown argument, or one that merit owns; names it and what to use instead.
    """
    known = {item.name for item in fields(SFTConfig)}
    for key in config.trl:
        if key in _OWNED:
            raise InputError(f"not here: {_OWNED[key]}", field=f"train.trl.{key}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"TRL's SFTConfig has no such argument{hint}", field=f"train.trl.{key}")
