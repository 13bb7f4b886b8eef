"""TRL's arguments: those that merit sets, and the check of those that a user sets."""

from __future__ import annotations

import difflib
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import SFTConfig

from merit.base.errors import InputError
from merit.config.sections import TrainConfig
from merit.models.loading import pick_precision
from merit.run.layout import BranchDir, RunDir
from merit.train.spec import BranchSpec
from merit.train.trackers import branch_name, group_name

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
# Only the machine that trains can tell whether it supports these; it need not be this one.
_HARDWARE = ("tf32", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "use_cpu")


@dataclass(frozen=True)
class Training:
    """What determines the arguments of one branch's training.

    Attributes:
        micro: examples per forward pass on each process. It is planned, like `accumulation`, once the number of
            processes is known.
    """

    run: RunDir
    branch: BranchDir
    spec: BranchSpec
    on_gpu: bool
    images: bool
    micro: int = 1
    accumulation: int = 1


class _Owned(NamedTuple):
    """An argument that merit decides: what a user sets instead, and its value. None: TRL's default."""

    instead: str
    value: Callable[[Training], Any] | None = None


# The only list of arguments that merit decides: it sets them, and refuses them under `train.trl`.
OWNED: dict[str, _Owned] = {
    "output_dir": _Owned("the run directory decides", lambda t: str(t.branch.training_state)),
    "num_train_epochs": _Owned("set `train.epochs`", lambda t: t.spec.train.epochs),
    "max_steps": _Owned("set `train.epochs`"),
    "learning_rate": _Owned("set `train.learning_rate`", lambda t: t.spec.train.learning_rate),
    "lr_scheduler_type": _Owned("set `train.schedule`", lambda t: t.spec.train.schedule),
    "lr_scheduler_kwargs": _Owned("set `train.schedule`"),
    "warmup_steps": _Owned("set `train.warmup_ratio`"),
    "warmup_ratio": _Owned("set `train.warmup_ratio`"),
    "weight_decay": _Owned("set `train.weight_decay`", lambda t: t.spec.train.weight_decay),
    "per_device_train_batch_size": _Owned("set `train.batch_tokens` and `train.micro_batch_tokens`", lambda t: t.micro),
    "gradient_accumulation_steps": _Owned(
        "set `train.batch_tokens` and `train.micro_batch_tokens`", lambda t: t.accumulation
    ),
    "max_length": _Owned("set `train.max_length`", lambda t: None),  # rows are cut already
    "bf16": _Owned("set `train.precision`", lambda t: pick_precision(t.spec.train.precision) == "bf16"),
    "fp16": _Owned("set `train.precision`"),
    "use_cpu": _Owned("merit trains on the GPU where there is one", lambda t: not t.on_gpu),
    "seed": _Owned("set `seed`", lambda t: t.spec.seed % 2**31),
    "data_seed": _Owned("set `seed`"),
    "save_strategy": _Owned("set `train.checkpoint_minutes`", lambda t: "no"),
    "save_steps": _Owned("set `train.checkpoint_minutes`"),
    "save_total_limit": _Owned("merit keeps the newest two"),
    "save_only_model": _Owned("merit resumes from what is saved"),
    "resume_from_checkpoint": _Owned("merit resumes by itself"),
    # The log has the loss of every step, and a loss that is not finite must stop the branch.
    "logging_strategy": _Owned("merit records the loss of every step", lambda t: "steps"),
    "logging_steps": _Owned("merit records the loss of every step", lambda t: 1),
    "logging_nan_inf_filter": _Owned("merit stops at a loss that is not finite", lambda t: False),
    "dataset_kwargs": _Owned("merit encodes the data itself", lambda t: {"skip_prepare_dataset": True}),
    "remove_unused_columns": _Owned("merit chooses the columns itself", lambda t: not t.images),
    "packing": _Owned("merit batches by tokens itself"),
    "padding_free": _Owned("merit batches by tokens itself"),
    "assistant_only_loss": _Owned("merit masks the labels itself"),
    "completion_only_loss": _Owned("merit masks the labels itself"),
    "eval_strategy": _Owned("merit evaluates after training"),
    "trust_remote_code": _Owned("set `model.trust_remote_code`"),
    "push_to_hub": _Owned("push the merged model when it is done"),
}

# Where merit only prefers another default than TRL, `train.trl` overrides it.
PREFERRED: dict[str, Callable[[Training], Any]] = {
    "report_to": lambda t: "none",
    "run_name": lambda t: branch_name(t.run, t.branch, t.spec),
    "project": lambda t: group_name(t.run),
    "disable_tqdm": lambda t: True,
    "gradient_checkpointing": lambda t: t.on_gpu,
    "dataloader_pin_memory": lambda t: t.on_gpu,
    # A micro-batch without images leaves the projector without a gradient; DDP must expect that.
    "ddp_find_unused_parameters": lambda t: True if t.images else None,
}


def check_trl(config: TrainConfig) -> None:
    """Checks `train.trl` against SFTConfig's fields and their values, before anything is trained.

    Raises:
        InputError: an unknown argument, one that merit decides, or a value that TRL refuses; names it and says what to
            use instead.
    """
    known = {item.name for item in fields(SFTConfig)}
    types = typing.get_type_hints(SFTConfig)
    for key, value in config.trl.items():
        if key in OWNED:
            raise InputError(f"not here: {OWNED[key].instead}", field=f"train.trl.{key}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"TRL's SFTConfig has no such argument{hint}", field=f"train.trl.{key}")
        _check_value(key, value, types[key])


def _check_value(key: str, value: Any, kind: Any) -> None:
    """Checks the type that TRL declares, then lets TRL check this argument alone."""
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


def sft_config(training: Training) -> SFTConfig:
    """TRL's arguments for one branch: what merit decides overrides `train.trl`, which overrides what merit prefers."""
    owned = {key: item.value(training) for key, item in OWNED.items() if item.value is not None}
    preferred = {key: value(training) for key, value in PREFERRED.items()}
    return SFTConfig(**{**preferred, **training.spec.train.trl, **owned})
