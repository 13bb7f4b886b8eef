"""What `merit handover` writes for Axolotl and LLaMA-Factory, read by their own code.

Optional: `make test-trainers` installs both without their dependencies, which pin older versions of ours, and runs it.
Validated with axolotl 0.19.0 and llamafactory 0.9.5.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from merit.config.sections import LoraSection, ModelConfig, TrainConfig
from merit.handover.bundle import CONFIG, Bundle
from merit.handover.trainers import TRAINERS
from merit.train.rows import plan_batching
from merit.train.spec import BranchSpec

# Prints, for each folder named, what the trainer understood. Unknown keys are errors here, whatever it thinks of them.
AXOLOTL = """
import json, sys
from pathlib import Path
import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
for folder in map(Path, sys.argv[1:]):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    unknown = set(values) - set(AxolotlInputConfig.model_fields)
    assert not unknown, unknown
    read = validate_config(DictDefault(values)).to_dict()
    print(json.dumps({"read": {key: read.get(key) for key in values}}, default=str))
"""
LLAMAFACTORY = """
import json, os, sys
import yaml
from llamafactory.hparams.parser import get_train_args
for folder in sys.argv[1:]:
    os.chdir(folder)
    with open("config.yaml") as file:
        values = yaml.safe_load(file)
    parts = get_train_args(values | {"use_cpu": True})  # bf16 is refused where no GPU is
    read = {key: getattr(part, key) for part in parts for key in values if hasattr(part, key)}
    print(json.dumps({"read": read}, default=str))
"""
LORAS = {
    "full": None,
    "linear": LoraSection(),
    "regex": LoraSection(target_modules="q_proj"),
    "named": LoraSection(r=4, alpha=8, dropout=0.1, target_modules=["q_proj", "v_proj"]),
}


def hand_over(trainer: str, root: Path) -> dict[str, Path]:
    """A folder for every way to train."""
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]], "labels": [[-100, 2, 3], [-100, 5]]})
    folders = {}
    for name, lora in LORAS.items():
        model = ModelConfig(path="org/name", revision="v1.0" if lora is None else None)
        train = TrainConfig(epochs=1.5, weight_decay=0.01, schedule="linear", lora=lora)
        spec = BranchSpec(
            method="merit", branch=0, model=model, model_fingerprint="", train=train, data=[], max_length=512,
            planned_tokens=4, seed=2**40 + 5,
        )  # fmt: skip
        batching = plan_batching([3, 2], train.batch_tokens, train.micro_batch_tokens)
        bundle = Bundle(spec, rows, "org/name", True, batching, batching.steps(2, 1.5))
        folders[name] = root / name
        folders[name].mkdir()
        TRAINERS[trainer].write_data(bundle, folders[name])
        (folders[name] / CONFIG).write_text(yaml.safe_dump(TRAINERS[trainer].configuration(bundle)))
    return folders


def understood(trainer: str, program: str, folders: dict[str, Path]) -> dict[str, Any]:
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"{trainer} is not installed; `make test-trainers` installs it")
    # LLaMA-Factory names older versions of our dependencies; its arguments are the same with newer ones.
    env = os.environ | {"DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", program, *map(str, folders.values())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"read"')]
    return dict(zip(folders, lines, strict=True))


def test_axolotl(tmp_path: Path) -> None:
    folders = hand_over("axolotl", tmp_path)
    for name, found in understood("axolotl", AXOLOTL, folders).items():
        written = yaml.safe_load((folders[name] / CONFIG).read_text())
        (data,) = found["read"].pop("datasets")
        assert {key: data[key] for key in ("path", "ds_type")} == {"path": "data", "ds_type": "parquet"}
        del written["datasets"]
        assert found["read"] == written, name


def test_llamafactory(tmp_path: Path) -> None:
    folders = hand_over("llamafactory", tmp_path)
    for name, found in understood("llamafactory", LLAMAFACTORY, folders).items():
        written = yaml.safe_load((folders[name] / CONFIG).read_text())
        assert found["read"].pop("report_to") == []  # its word for `none`
        del written["report_to"]
        lists = {key: written[key].split(",") for key in ("dataset", "lora_target") if key in written}
        assert found["read"] == written | lists, name
