"""Is a model card one that the Hub understands? Checked here, so that nothing is half pushed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from merit.base.errors import InputError

_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_LISTS = ("tags", "datasets", "base_model", "language", "metrics")


def check_card(text: str, file: Path) -> list[str]:
    """What the card should say and does not, in sentences.

    Raises:
        InputError: metadata that is missing, not YAML, or not what the Hub takes; names field and file.
    """
    front = front_matter(text, file)
    for name in _LISTS:
        for value in _listed(front.get(name)):
            if not isinstance(value, str):
                raise InputError(f"expected text, got {value!r}", file=file, field=name)
    _check_ids(front, file)
    relation = front.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        raise InputError(f"{relation!r} is none of {', '.join(_RELATIONS)}", file=file, field="base_model_relation")
    _check_figures(front, file)
    notes = []
    if not front.get("license"):
        notes.append("the card names no license, so nobody may use the model; give one with --license")
    if not front.get("base_model"):
        notes.append("the card names no base model on the Hub: θ0 was a local one")
    if front.get("library_name") != "transformers":
        notes.append("the card does not say `library_name: transformers`, so the Hub shows no snippet to load it")
    return notes


def front_matter(text: str, file: Path) -> dict[str, Any]:
    """The YAML between the first two `---` lines.

    Raises:
        InputError: there is none.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise InputError("no metadata: a card begins with YAML between two `---` lines", file=file)
    stop = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        front = yaml.safe_load("\n".join(lines[1:stop]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark is not None else None
        raise InputError(f"the metadata are not YAML: {' '.join(str(error).split())}", file=file, line=line) from None
    if not isinstance(front, dict):
        raise InputError("the metadata are not a mapping", file=file, line=2)
    return front


def with_license(text: str, name: str, file: Path) -> str:
    """The card with `license: name` in its metadata."""
    front = front_matter(text, file) | {"license": name}
    lines = text.splitlines()
    stop = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    return "\n".join(["---", head, "---", *lines[stop + 1 :]]) + "\n"


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _check_ids(front: dict[str, Any], file: Path) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    for field in ("base_model", "datasets"):
        for name in _listed(front.get(field)):
            try:
                validate_repo_id(name)
            except HFValidationError:
                raise InputError(f"{name!r} is no Hub id", file=file, field=field) from None


def _check_figures(front: dict[str, Any], file: Path) -> None:
    """`model-index`, the Hub's form of results, as its own client reads it."""
    from huggingface_hub import ModelCardData

    known = {str(key): value for key, value in front.items()}
    try:
        ModelCardData(**known)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the Hub would not take it: {first}", file=file, field="model-index") from None
