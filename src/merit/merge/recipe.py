"""Recipes in mergekit's YAML: written so that mergekit can make the same merge, read so that we can make theirs.

merit makes whole-model averages only: `linear` and `task_arithmetic`. For everything else, an error names mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from merit.base.errors import InputError
from merit.config.sections import DtypeName
from merit.config.yaml import read_yaml
from merit.merge.record import MergeRecord
from merit.merge.weights import check_weights, normalised

_KEYS = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "name"}


@dataclass(frozen=True)
class Recipe:
    """A mergekit recipe in merit's terms. Models are folders or Hub ids, as they stand in the file."""

    models: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    scale: float  # β
    dtype: DtypeName


def mergekit_recipe(record: MergeRecord, names: Sequence[str] | None = None) -> str:
    """The YAML that makes mergekit produce this merge, up to its own rounding.

    `names` replaces the paths of the inputs and, last, of θ0.

    Raises:
        InputError: running sums, weights by pattern, a rule that is no average, an outer step: mergekit cannot express
            them.
    """
    result = record.result
    if record.scale is None or result.rules or result.rule or result.outer:
        raise InputError(
            "mergekit has no recipe for running sums, weights by pattern, this rule or an outer step", field="rules"
        )
    paths = list(names) if names is not None else [item.path for item in result.inputs]
    models = [
        {"model": path, "parameters": {"weight": item.weight}} for path, item in zip(paths, result.inputs, strict=False)
    ]
    recipe: dict[str, Any] = {"merge_method": "linear", "models": models, "parameters": {"normalize": True}}
    if record.scale != 1.0 and result.base is not None:
        base = names[len(result.inputs)] if names is not None else result.base.path
        recipe |= {"merge_method": "task_arithmetic", "base_model": base}
        recipe["parameters"] = {"normalize": False, "lambda": record.scale}
    recipe |= {"dtype": "float32", "out_dtype": result.dtype}
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def other_method_recipe(
    method: str, models: Sequence[str], weights: Sequence[float], base: str, dtype: DtypeName = "bfloat16"
) -> str:
    """The YAML that hands the same branches and weights to one of mergekit's other methods (`ties`, `dare_ties`, …),
    with mergekit's own defaults for everything else: `mergekit-yaml FILE OUT`.

    Raises:
        InputError: weights that cannot weigh.
    """
    shares = normalised(check_weights(weights, len(models)))
    recipe = {
        "merge_method": method,
        "base_model": base,
        "models": [
            {"model": model, "parameters": {"weight": share}} for model, share in zip(models, shares, strict=True)
        ],
        "dtype": "float32",
        **({} if dtype == "input" else {"out_dtype": dtype}),
    }
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def read_mergekit(file: Path) -> Recipe:
    """Reads a `linear` or `task_arithmetic` recipe of whole models.

    Raises:
        InputError: not YAML, or something that only mergekit can do; names the key.
    """
    recipe = _mapping(file, None, read_yaml(file)[0])
    method = recipe.get("merge_method")
    if method not in ("linear", "task_arithmetic"):
        raise _theirs(file, "merge_method", f"the method {method!r}")
    for key in recipe:
        if key not in _KEYS:
            raise _theirs(file, str(key), "this")
    if recipe.get("tokenizer_source") not in (None, "base"):
        raise _theirs(file, "tokenizer_source", "building another tokenizer")
    base = recipe.get("base_model")
    settings = _mapping(file, "parameters", recipe.get("parameters"))
    models, weights = _models(file, recipe.get("models"), settings, base if method == "task_arithmetic" else None)
    normalize = settings.get("normalize", method == "linear")
    total = math.fsum(check_weights(weights, len(weights)))
    scale = 1.0
    if method == "task_arithmetic":
        if not isinstance(base, str):
            raise InputError("task_arithmetic needs it", file=file, field="base_model")
        scale = _number(file, "parameters.lambda", settings.get("lambda", 1.0)) * (1.0 if normalize else total)
    elif not normalize and not math.isclose(total, 1.0, rel_tol=1e-9):
        raise _theirs(file, "parameters.normalize", f"a sum of weights of {total:g} instead of 1")
    dtype = recipe.get("out_dtype") or recipe.get("dtype") or "input"
    if dtype not in get_args(DtypeName):
        raise _theirs(file, "dtype", f"the type {dtype!r}")
    return Recipe(tuple(models), tuple(weights), base if isinstance(base, str) else None, scale, cast(DtypeName, dtype))


def _models(file: Path, value: Any, settings: dict[str, Any], base: Any) -> tuple[list[str], list[float]]:
    if not isinstance(value, list) or not value:
        raise InputError("a list of models is missing", file=file, field="models")
    models, weights = [], []
    for number, entry in enumerate(value):
        item = _mapping(file, f"models[{number}]", entry)
        model = item.get("model")
        if not isinstance(model, str):
            raise InputError("a path or Hub id is missing", file=file, field=f"models[{number}].model")
        own = _mapping(file, f"models[{number}].parameters", item.get("parameters"))
        if model == base:
            continue  # θ0 has no step from itself: mergekit leaves it out, weight and all
        where = f"models[{number}].parameters.weight"
        models.append(model)
        weights.append(_number(file, where, own.get("weight", settings.get("weight"))))
    if not models:
        raise InputError("no model but the base is listed", file=file, field="models")
    return models, weights


def _number(file: Path, field: str, value: Any) -> float:
    if isinstance(value, list | dict):
        raise _theirs(file, field, "a value that differs by layer")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{value!r} is not a number", file=file, field=field)
    return float(value)


def _mapping(file: Path, field: str | None, value: Any) -> dict[str, Any]:
    if value is None and field is not None:
        return {}
    if not isinstance(value, dict):
        raise InputError("a mapping is expected here", file=file, field=field)
    return value


def _theirs(file: Path, field: str, what: str) -> InputError:
    return InputError(
        f"merit does not support {what}, but mergekit does: mergekit-yaml {file.name} OUT", file=file, field=field
    )
