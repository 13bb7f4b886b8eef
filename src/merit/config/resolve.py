"""The resolved configuration: every default written out, every local path absolute, so that a run replays itself."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig, ModelConfig

_VERSIONS = ("merit-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """`config` with every path to a local file made absolute; Hub ids and generators stay as they are."""
    base = base.resolve()

    def local(path: str) -> str:
        try:
            return str(base / path) if (base / path).exists() else path
        except (OSError, ValueError):
            return path  # too long a name, or a NUL in it: whoever opens it says so

    def optional(path: str | None) -> str | None:
        return None if path is None else str(base / path)

    def datasets(section: dict[str, DatasetConfig]) -> dict[str, DatasetConfig]:
        return {
            name: item.model_copy(update={"path": local(item.path), "image_folder": optional(item.image_folder)})
            for name, item in section.items()
        }

    def model(section: ModelConfig) -> ModelConfig:
        return section.model_copy(
            update={"path": local(section.path), "chat_template": optional(section.chat_template)}
        )

    proxy = config.calibration.proxy
    prepare = config.prepare
    if prepare is not None:
        tower = prepare.vision_tower
        update = {"mixture": datasets(prepare.mixture), "vision_tower": tower and local(tower)}
        prepare = prepare.model_copy(update=update)
    baselines = {name: item.model_copy(update={"file": optional(item.file)}) for name, item in config.baselines.items()}
    return config.model_copy(
        update={
            "model": model(config.model),
            "calibration": config.calibration.model_copy(update={"proxy": model(proxy) if proxy else None}),
            "mixture": datasets(config.mixture),
            "evaluate": config.evaluate.model_copy(update={"unseen": datasets(config.evaluate.unseen)}),
            "split": config.split.model_copy(update={"file": optional(config.split.file)}),
            "baselines": baselines,
            "prepare": prepare,
            "launch": config.launch.model_copy(update={"accelerate": optional(config.launch.accelerate)}),
        }
    )


def dump_config(config: RunConfig, base: Path) -> str:
    """YAML of the configuration, with the versions it ran with under `versions` (ignored when it is read again)."""
    values: dict[str, Any] = config.model_dump(mode="json")
    return yaml.safe_dump({**values, "versions": versions(base)}, sort_keys=False, allow_unicode=True, width=120)


def versions(base: Path) -> dict[str, str]:
    """Python, the packages that decide a result, and the commit of the folder that holds the configuration."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found["merit" if name == "merit-tuning" else name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit(base)
    return found | ({"git_commit": commit} if commit else {})


def _git_commit(folder: Path) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
