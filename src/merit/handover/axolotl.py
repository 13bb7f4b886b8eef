"""Axolotl: `axolotl train config.yaml`. A dataset with no `type` is taken as tokenized already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.handover.bundle import DATA, OUTPUT, Bundle

COMMAND = "axolotl train config.yaml"


def write_data(bundle: Bundle, folder: Path) -> None:
    """The branch's rows with the attention mask that Axolotl expects."""
    bundle.write_parquet(folder, mask=True)


def configuration(bundle: Bundle) -> dict[str, Any]:
    """Axolotl's configuration."""
    spec, train = bundle.spec, bundle.spec.train
    values: dict[str, Any] = {
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
    }
    if spec.model.revision and bundle.model == spec.model.path:
        values["revision_of_model"] = spec.model.revision
    if train.lora is not None:
        targets = train.lora.target_modules
        values |= {
            "adapter": "lora",
            "lora_r": train.lora.r,
            "lora_alpha": round(train.lora.alpha),
            "lora_dropout": train.lora.dropout,
            **({"lora_target_linear": True} if targets == "all-linear" else {"lora_target_modules": targets}),
        }
    return values
