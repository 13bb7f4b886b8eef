"""Which settings of a run differ from those of its last call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.config.run import RunConfig
from merit.config.sections import TrainConfig
from merit.config.yaml import read_yaml, rename_keys, rename_values

_NAMED = ("mixture", "baselines", "evaluate.unseen")  # sections whose keys are the user's
_UNWRITTEN = ("rounds", "carry_optimizer", "outer")
_SHOWN = 40


def changed_settings(before: Path, now: RunConfig) -> list[str]:
    """`train.learning_rate 2e-05 → 1e-05` for each setting that differs; nothing where there was no call.

    Args:
        before: the configuration that the last call has left in the run directory.
    """
    try:
        values, _ = read_yaml(before)
    except InputError:
        return []
    if not isinstance(values, dict):
        return []
    rename_values(values)
    rename_keys(values)
    return list(_differences(_whole(values), _whole(now.model_dump(mode="json")), ""))


def _whole(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the settings of training that are not written where they are at their default."""
    train = values.get("train")
    if not isinstance(train, dict):
        return values
    return {**values, "train": {name: TrainConfig.model_fields[name].default for name in _UNWRITTEN} | train}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str) -> Iterator[str]:
    """A key that only one of them has is a setting of another version, unless the keys are the user's."""
    for key in dict.fromkeys([*before, *now]):
        place = f"{at}.{key}" if at else key
        if key not in before or key not in now:
            if at in _NAMED:
                yield f"{place} {'added' if key in now else 'removed'}"
        elif isinstance(before[key], dict) and isinstance(now[key], dict):
            yield from _differences(before[key], now[key], place)
        elif before[key] != now[key]:
            yield f"{place} {_shown(before[key])} → {_shown(now[key])}"


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
