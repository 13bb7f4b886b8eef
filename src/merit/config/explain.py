"""Pydantic's errors in the user's words: the file, the line, the field, and the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from merit.base.errors import InputError
from merit.config.root import RunConfig
from merit.config.section import REFUSED, Location

_SHOWN = 60  # characters of a name or value


def explain(
    path: Path, error: ValidationError, lines: Mapping[Location, int], root: type[BaseModel] = RunConfig
) -> list[InputError]:
    """One error a mistake, in the order of their lines.

    Args:
        path: the configuration file.
        lines: the line of every field in it.
        root: what the file holds.
    """
    found: list[tuple[Location, str]] = []
    suggested: set[Location] = set()
    for item in error.errors(include_url=False):
        at: Location = tuple(part for part in item["loc"] if part != "[key]")
        if item["type"] == REFUSED:
            found += [((*at, *place), message) for place, message in item["ctx"]["problems"]]
        elif item["type"] == "extra_forbidden":
            near, message = _unknown(root, at)
            suggested |= {(*at[:-1], near)} if near else set()
            found.append((at, message))
        else:
            found.append((at, _message(item, at)))
    # `pth:` for `path:` is one mistake, although `path` is then missing as well.
    kept = [(at, message) for at, message in found if not (message == _MISSING and at in suggested)]
    problems = [InputError(message, file=path, line=_line(lines, at), field=_field(at)) for at, message in kept]
    return sorted(problems, key=lambda problem: problem.line or 0)


_MISSING = "missing; this field is required"


def _message(item: Any, at: Location) -> str:
    if item["type"] == "missing":
        return _MISSING
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "too_short":
        return "must not be empty"
    if item["type"] in ("value_error", "model_type", "dict_type") or isinstance(item.get("input"), dict | list):
        return message
    value = item.get("input")
    hint = ""
    if item["type"] == "literal_error":
        known = [word.strip("' ") for word in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"{message}, not {_short(str(value))!r}{hint}"


def _unknown(root: type[BaseModel], at: Location) -> tuple[str | None, str]:
    known = _keys_at(root, at[:-1])
    near = difflib.get_close_matches(str(at[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return (near[0] if near else None), f"unknown key; {hint}"


def _field(at: Location) -> str | None:
    return ".".join(_short(str(part)) for part in at) or None


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _line(lines: Mapping[Location, int], at: Location) -> int:
    while at not in lines:
        at = at[:-1]
    return lines[at]


def _keys_at(root: type[BaseModel], at: Location) -> list[str]:
    """The known keys of the section at `at`, found by walking the schema."""
    model = root
    skip = False
    for part in at:
        if skip:
            skip = False
            continue
        annotation: Any = model.model_fields[str(part)].annotation
        arguments = getattr(annotation, "__args__", ())
        skip = getattr(annotation, "__origin__", None) is dict
        candidates = [item for item in (annotation, *arguments) if _is_section(item)]
        if not candidates:
            return []
        model = candidates[0]
    return list(model.model_fields)


def _is_section(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)
