"""The trainers that a branch can be handed to: the command, the data and the configuration of each.

All of them get the token ids and labels that merit itself would train on, so none of them tokenizes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.handover.bundle import DATA, OUTPUT, Bundle


@dataclass(frozen=True)
class Trainer:
    """Another trainer.

    Attributes:
        command: trains, in the branch's folder.
        write_data: writes the branch's rows below a folder.
        configuration: the trainer's own settings.
    """

    command: str
    write_data: Callable[[Bundle, Path], None]
    configuration: Callable[[Bundle], dict[str, Any]]


def _trl(bundle: Bundle) -> dict[str, Any]:
    """Arguments of TRL's sft script. Its trainer takes tokenized rows with labels as they are."""
    values = {
        "model_name_or_path": bundle.model,
        "dtype": "float32",
        "dataset_name": f"./{DATA}",
        "max_length": bundle.spec.max_length,
        "packing": False,
        **bundle.trainer_arguments,
        **bundle.revision("model_revision"),
    }
    lora = bundle.spec.train.lora
    if lora is not None:
        values |= {"use_peft": True, "dtype": "auto", **bundle.lora, "lora_target_modules": lora.target_modules}
    return values


def _axolotl(bundle: Bundle) -> dict[str, Any]:
    """Axolotl's configuration. It takes a dataset with no `type` as tokenized already."""
    spec, train = bundle.spec, bundle.spec.train
    values = {
        "base_model": bundle.model,
        "datasets": [{"path": DATA, "ds_type": "parquet", "type": None}],
        "dataset_prepared_path": "prepared",
        "val_set_size": 0,
        "output_dir": OUTPUT,
        "sequence_len": spec.max_length,
        "sample_packing": False,
        "train_on_inputs": False,
        "num_epochs": train.epochs,
        "micro_batch_size": bundle.batching.micro,
        "gradient_accumulation_steps": bundle.batching.accumulation,
        "optimizer": "adamw_torch",
        "learning_rate": train.learning_rate,
        "lr_scheduler": train.schedule,
        "warmup_steps": bundle.warmup_steps,
        "weight_decay": train.weight_decay,
        "bf16": bundle.bf16,
        "seed": spec.seed % 2**31,
        "logging_steps": 1,
        "saves_per_epoch": 1,
        "save_total_limit": 1,
        **bundle.revision("revision_of_model"),
    }
    if train.lora is not None:
        targets = train.lora.target_modules
        every = {"lora_target_linear": True} if targets == "all-linear" else {"lora_target_modules": targets}
        values |= {"adapter": "lora", **bundle.lora, **every}
    return values


def _llamafactory(bundle: Bundle) -> dict[str, Any]:
    """LLaMA-Factory's arguments. `tokenized_path` is a dataset that is tokenized already."""
    lora = bundle.spec.train.lora
    values = {
        "model_name_or_path": bundle.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if lora is None else "lora",
        "dataset": DATA,  # only asked for: rows that are tokenized already come before any dataset of this name
        "tokenized_path": DATA,
        "template": "empty",  # the rows are rendered already
        "cutoff_len": bundle.spec.max_length,
        "packing": False,
        **bundle.trainer_arguments,
        **bundle.revision("model_revision"),
    }
    if lora is not None:
        named = bundle.lora
        values |= {"lora_rank": named.pop("lora_r"), **named, "lora_target": _llamafactory_targets(lora.target_modules)}
    return values


def _llamafactory_targets(targets: str | list[str]) -> str:
    if isinstance(targets, str):
        return "all" if targets == "all-linear" else targets
    return ",".join(targets)


TRAINERS = {
    "trl": Trainer("trl sft --config config.yaml", Bundle.write_parquet, _trl),
    "axolotl": Trainer(
        "axolotl train config.yaml", lambda bundle, folder: bundle.write_parquet(folder, mask=True), _axolotl
    ),
    "llamafactory": Trainer("llamafactory-cli train config.yaml", Bundle.write_disk, _llamafactory),
}
