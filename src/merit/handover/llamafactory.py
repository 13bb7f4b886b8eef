"""LLaMA-Factory: `llamafactory-cli train config.yaml`. `tokenized_path` is a dataset that is tokenized already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.handover.bundle import DATA, Bundle

COMMAND = "llamafactory-cli train config.yaml"


def write_data(bundle: Bundle, folder: Path) -> None:
    """The branch's rows as LLaMA-Factory saves them itself."""
    bundle.write_disk(folder)


def configuration(bundle: Bundle) -> dict[str, Any]:
    """LLaMA-Factory's arguments."""
    spec, train = bundle.spec, bundle.spec.train
    values: dict[str, Any] = {
        "model_name_or_path": bundle.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if train.lora is None else "lora",
        "dataset": DATA,  # only asked for: rows that are tokenized already come before any dataset of this name
        "tokenized_path": DATA,
        "template": "empty",  # the rows are rendered already
        "cutoff_len": spec.max_length,
        "packing": False,
        **bundle.trainer_arguments,
    }
    if spec.model.revision and bundle.model == spec.model.path:
        values["model_revision"] = spec.model.revision
    if train.lora is not None:
        targets = train.lora.target_modules
        values |= {
            "lora_rank": train.lora.r,
            "lora_alpha": round(train.lora.alpha),
            "lora_dropout": train.lora.dropout,
            "lora_target": "all"
            if targets == "all-linear"
            else targets
            if isinstance(targets, str)
            else ",".join(targets),
        }
    return values
