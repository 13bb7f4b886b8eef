"""`method: published`: every setting that the paper names, at its value (docs/method.md says what it leaves open)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from merit.config.sections import PUBLISHED, Location, refused

SETTINGS: dict[tuple[str, str], Any] = {
    ("calibration", "examples"): 200,
    ("calibration", "until"): None,
    ("calibration", "sketch"): "flat",
    ("calibration", "stride"): 5,
    ("calibration", "offset"): 0,
    ("calibration", "parameters"): None,
    ("calibration", "hashed"): None,
    ("calibration", "proxy"): None,
    ("split", "splitter"): "pca",
    ("split", "centre"): "columns",
    ("split", "balance"): "samples",
    ("train", "lora"): None,
    ("train", "pull"): 0.0,
    ("merge", "weights"): PUBLISHED,
    ("merge", "scales"): [1.0],
    ("diagnose", "points"): 21,
}
AXES = (1, 2, 3)  # "1D, 2D, 3D"
FROZEN = ["vision", "projector"]  # of a vision-language model: its default


def apply_published(value: dict[str, Any]) -> dict[str, Any]:
    """The configuration with these settings written in.

    Raises:
        PydanticCustomError: a key that contradicts one of them.
    """
    problems = list(_contradictions(value))
    if problems:
        raise refused(problems)
    value = dict(value)
    for (section, key), wanted in SETTINGS.items():
        if isinstance(value.get(section, {}), dict):
            value[section] = {**value.get(section, {}), key: wanted}
    return value


def _contradictions(value: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    for (section, key), wanted in SETTINGS.items():
        given = value.get(section)
        if isinstance(given, dict) and key in given and given[key] != wanted:
            yield (section, key), f"contradicts `method: published`, which sets {_shown(wanted)}; remove one of the two"
    model = value.get("model")
    if isinstance(model, dict) and model.get("freeze") not in (None, FROZEN):
        yield ("model", "freeze"), f"contradicts `method: published`, which freezes {FROZEN}; remove one of the two"
    split = value.get("split")
    if isinstance(split, dict) and split.get("axes", AXES[0]) not in AXES:
        yield ("split", "axes"), "contradicts `method: published`, which has 1, 2 or 3 axes; remove one of the two"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
