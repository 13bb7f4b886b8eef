"""Prints docs/configuration.md from the schema: `python docs/generate_configuration.py > docs/configuration.md`."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from merit.config import RunConfig
from merit.config.study import StudyConfig

_INTRO = """\
# Configuration

<!-- Written by docs/generate_configuration.py from the schema in merit.config. Change that, and run it again. -->

One YAML file describes a run; `merit init FOLDER` writes a first one, `merit schema` prints the JSON Schema for
editors, and `merit check FILE` reads every dataset and says all that is wrong at once. Paths are relative to the file's
own folder. Unknown keys are errors, and the nearest known key is suggested. Every default is written out in the run
directory's `config.yaml`, which is itself a configuration that repeats the run.

```yaml
model: HuggingFaceTB/SmolLM2-135M-Instruct
mixture:
  arithmetic: {path: data/arithmetic.jsonl}
  code: {path: data/code.parquet, max_examples: 20000}
  gcd: {path: "reasoning_gym:gcd", max_examples: 500}
  letters: {path: data/letters.csv, columns: {prompt: question, completion: answer}}
split: {splitter: pca, axes: 1}
baselines: {joint: {splitter: single, scales: [1.0, 0.5]}, random: random}
train: {epochs: 1, learning_rate: 2e-5}
```
"""
_STUDY = """\
`merit study FILE` compares methods × budgets × seeds; see [study.md](study.md). `mixture`, `train`, `calibration` and
`launch` are as above.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRO, "## Top level\n", _table(RunConfig, "")]
    first: dict[type[BaseModel], str] = {}
    for path, model in _sections(RunConfig, ""):
        if model in first:
            parts.append(f"## `{path}`\n\nThe same fields as `{first[model]}`.\n")
        else:
            first[model] = path
            summary = (model.__doc__ or "").strip().splitlines()[0]
            parts += [f"## `{path}`\n", f"{summary}\n", _table(model, f"{path}.")]
    return "\n".join([*parts, *_study()])


def _study() -> list[str]:
    """What a study file has besides."""
    known = {model for _, model in _sections(RunConfig, "")}
    parts = ["# Study files\n", _STUDY, _table(StudyConfig, "")]
    for path, model in _sections(StudyConfig, ""):
        if model not in known and not path.startswith("warmup."):
            summary = (model.__doc__ or "").strip().splitlines()[0]
            parts += [f"## Study: `{path}`\n", f"{summary}\n", _table(model, f"{path}.")]
    return parts


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section below `model`, depth first, with its dotted path; NAME stands for a key that the user chooses."""
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is None or not inner.model_fields:
            continue
        path = f"{prefix}{name}.NAME" if typing.get_origin(field.annotation) is dict else f"{prefix}{name}"
        yield path, inner
        yield from _sections(inner, f"{path}.")


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation leads to: itself, or inside a union or a mapping."""
    for item in (annotation, *typing.get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item
    return None


def _table(model: type[BaseModel], prefix: str) -> str:
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        cells = (f"`{prefix}{name}`", _type(field), _default(field), _escaped(field.description or ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A description may hold `|` and `<`, which would end a cell or open a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _type(field: FieldInfo) -> str:
    text = _name(field.annotation)
    limits = [
        f"{sign} {getattr(rule, attribute):,}"
        for rule in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if isinstance(getattr(rule, attribute, None), int | float)
    ]
    return f"{text}, {', '.join(limits)}" if limits else text


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(item) for item in arguments)
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is dict:
        return f"mapping of {_name(arguments[1])}"
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, "anything")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or (isinstance(value, BaseModel) and type(value).model_fields):
        return "see below"
    if isinstance(value, BaseModel):
        return "`{}`"
    if isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        return f"{len(value)} of them: {', '.join(f'`{name}`' for name in value)}"
    return f"`{json.dumps(value)}`" if value is not None else "null"


if __name__ == "__main__":
    sys.stdout.write(page())
