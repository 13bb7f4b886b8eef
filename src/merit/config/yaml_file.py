"""Reads `merit.yaml`, and says of every mistake in it the file, the line and the field."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from merit.config.explain import explain
from merit.config.root import RunConfig
from merit.config.section import Section
from merit.config.yaml_text import read_yaml
from merit.errors import InputError, Problems

_Kind = TypeVar("_Kind", bound=Section)


def load_config(path: Path) -> RunConfig:
    """Reads and validates a run's configuration; errors as of `load_section`."""
    return load_section(path, RunConfig, "`model: …`, `mixture: …`")


def load_section(path: Path, kind: type[_Kind], example: str) -> _Kind:
    """Reads and validates a YAML file that holds one section.

    Args:
        kind: the section's model.
        example: what such a file begins with, for the message about one that holds no mapping.

    Raises:
        InputError: no such file, not YAML, a duplicate or unknown key (with the nearest known one), a wrong value.
            Several mistakes come together, as `Problems`.
    """
    value, lines = read_yaml(path, missing=InputError("no such file; `merit init FOLDER` writes one", file=path))
    if value is None:
        raise InputError("the file is empty; `merit init FOLDER` writes a filled one", file=path)
    if isinstance(value, dict):
        value.pop("versions", None)  # what a run directory's config.yaml says of its making
    else:
        raise InputError(f"the file must hold a mapping such as {example}", file=path, line=1)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = explain(path, error, lines, kind)
        raise problems[0] if len(problems) == 1 else Problems(problems) from None
