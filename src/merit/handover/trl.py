"""TRL: `trl sft --config config.yaml`. Its trainer takes tokenized rows with labels as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.handover.bundle import DATA, Bundle

COMMAND = "trl sft --config config.yaml"


def write_data(bundle: Bundle, folder: Path) -> None:
    """The branch's rows as a folder that `datasets.load_dataset` reads."""
    bundle.write_parquet(folder, mask=False)


def configuration(bundle: Bundle) -> dict[str, Any]:
    """Arguments of TRL's sft script."""
    spec, train = bundle.spec, bundle.spec.train
    values: dict[str, Any] = {
        "model_name_or_path": bundle.model,
        "dtype": "float32",
        "dataset_name": f"./{DATA}",
        "max_length": spec.max_length,
        "packing": False,
        **bundle.trainer_arguments,
    }
    if spec.model.revision and bundle.model == spec.model.path:
        values["model_revision"] = spec.model.revision
    if train.lora is not None:
        values |= {
            "use_peft": True,
            "dtype": "auto",
            "lora_r": train.lora.r,
            "lora_alpha": round(train.lora.alpha),
            "lora_dropout": train.lora.dropout,
            "lora_target_modules": train.lora.target_modules,
        }
    return values
