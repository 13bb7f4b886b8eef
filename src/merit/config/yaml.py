"""Reads YAML files, from strangers too: plain data only, no aliases, bounded depth, sizes and numbers.

Every mistake in a configuration is explained by file, line, field and the nearest known key.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from merit.base.errors import InputError, Problems, did_you_mean
from merit.config.run import RunConfig
from merit.config.sections import REFUSED, Location, Section

# Old name → new name of keys that were renamed in 0.2.0. The next version refuses the old names.
RENAMED: dict[Location, Location] = {("launch", "losses"): ("launch", "preemption_retries")}
# Setting → old value → new value: of a run's configuration, and of a study's.
_CENTRES = {True: "both", False: "none"}
RENAMED_VALUES: dict[Location, dict[bool, str]] = {("split", "centre"): _CENTRES, ("centre",): _CENTRES}
_log = logging.getLogger(__name__)
MAX_BYTES = 4_000_000
MAX_DEPTH = 30
MAX_DIGITS = 18
# What PyYAML's constructors raise at values that their own tags do not fit.
_REFUSALS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


def read_yaml(path: Path, *, missing: InputError | None = None) -> tuple[Any, dict[Location, int]]:
    """The value in a YAML file (JSON is YAML too), and the line of every field in it. Keys are text, as written.

    Args:
        missing: the error to raise if there is no file.

    Raises:
        InputError: no such file; not YAML or nothing in it; an alias, a duplicate key, deep nesting, a value that is no
            plain data. Names file and line.
    """
    text = _read(path, missing)
    try:
        loader = _Loader(path, text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InputError(f"not valid YAML: {error.problem}", file=path, line=line) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}", file=path) from None
    return (None if root is None else loader.value(root, ())), loader.lines


def _read(path: Path, missing: InputError | None) -> str:
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES:,} bytes, so this is no configuration", file=path)
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise missing or InputError("no such file", file=path) from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError("not valid UTF-8", file=path, line=line) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error


class _Loader(yaml.SafeLoader):
    """Plain data without aliases, and YAML 1.2 numbers: PyYAML reads `2e-5`, which has no dot, as text.

    Attributes:
        lines: the line of every field whose value has been read.
    """

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path
        self.lines: dict[Location, int] = {(): 1}
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        # An alias repeats a part of the file, which is how a few bytes become gigabytes.
        if isinstance(event, yaml.AliasEvent):
            raise self._mistake("YAML aliases (*name) are not supported; write the value out", event)
        inner = isinstance(event, yaml.CollectionStartEvent)
        self._depth += inner
        if self._depth > MAX_DEPTH:
            raise self._mistake("nested too deeply", event)
        node = super().compose_node(parent, index)
        self._depth -= inner
        return node

    def value(self, node: Any, at: Location) -> Any:
        """The value of the node of the field `at`.

        Raises:
            InputError: a duplicate key, or a value that is no plain data.
        """
        self.lines[at] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                # `on:` or `1:` are names here, whatever YAML makes of them.
                if not isinstance(key_node, yaml.ScalarNode):
                    raise self._mistake("a key must be a plain name", key_node)
                key = self._text(key_node)
                if key in mapping:
                    first = self.lines[(*at, key)]
                    problem = f"the name is used twice (first in line {first}); rename one"
                    raise self._mistake(problem, key_node, (*at, key))
                mapping[key] = self.value(value_node, (*at, key))
                self.lines[(*at, key)] = key_node.start_mark.line + 1
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*at, index)) for index, item in enumerate(node.value)]
        too_long = f"a number of more than {MAX_DIGITS} digits"
        if node.tag.endswith(":int") and len(self._text(node)) > 2 * MAX_DIGITS:
            # Python itself refuses, with advice for programmers, to read more than 4,300 digits.
            raise self._mistake(too_long, node, at)
        try:
            self._text(node)
            value = self.construct_object(node)
        except _REFUSALS as error:
            raise self._mistake(f"cannot read this value: {' '.join(str(error).split())}", node, at) from None
        if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise self._mistake(too_long, node, at)
        return value

    def _text(self, node: yaml.Node) -> str:
        text = str(node.value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise self._mistake("holds half a surrogate pair, which is no text", node) from None
        return text

    def _mistake(self, message: str, where: Any, at: Location = ()) -> InputError:
        return InputError(message, file=self.path, line=where.start_mark.line + 1, field=_dotted(at) or None)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _dotted(at: Location) -> str:
    return ".".join(map(str, at))


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
        made = value.pop("versions", None)  # which a run directory's config.yaml records
        many = isinstance(value.get("mixture"), dict) and len(value["mixture"]) > 1
        if made is not None and many and isinstance(value.get("split"), dict):
            value["split"].setdefault("balance", "tokens")  # as merit 0.1.0, which had no other, has split it
    else:
        raise InputError(f"the file must hold a mapping such as {example}", file=path, line=1)
    for place, was, now in rename_values(value):
        message = f"`{was}` is now called `{now}`; the next version refuses the old value"
        _log.warning("%s", InputError(message, file=path, line=lines[place], field=_dotted(place)))
    for old, new in rename_keys(value):
        lines |= {(*new, *at[len(old) :]): line for at, line in lines.items() if at[: len(old)] == old}
        message = f"is now called `{_dotted(new)}`; the next version refuses the old name"
        _log.warning("%s", InputError(message, file=path, line=lines[old], field=_dotted(old)))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = explain(path, error, lines, kind)
        raise problems[0] if len(problems) == 1 else Problems(problems) from None


def rename_values(value: dict[str, Any]) -> list[tuple[Location, str, str]]:
    """Gives settings, in place, the present names of their values; where, old and new of each that was renamed."""
    done = []
    for at, names in RENAMED_VALUES.items():
        section = _parent(value, at)
        old = section.get(str(at[-1])) if section is not None else None
        if section is not None and isinstance(old, bool):
            section[str(at[-1])] = names[old]
            done.append((at, str(old).lower(), names[old]))
    return done


def rename_keys(value: dict[str, Any]) -> list[tuple[Location, Location]]:
    """Gives the keys of a configuration, in place, their present names.

    Returns:
        The old and the new place of each key that was renamed. A key whose new name is there as well keeps its old
        one, which is then unknown.
    """
    done = []
    for old, new in RENAMED.items():
        source, target = _parent(value, old), _parent(value, new)
        if source is not None and target is not None and old[-1] in source and new[-1] not in target:
            target[str(new[-1])] = source.pop(str(old[-1]))
            done.append((old, new))
    return done


def _parent(value: Any, at: Location) -> dict[str, Any] | None:
    for part in at[:-1]:
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


_SHOWN = 60  # characters of a name or value


def explain(
    path: Path, error: ValidationError, lines: Mapping[Location, int], root: type[BaseModel]
) -> list[InputError]:
    """Pydantic's errors in the user's words: one error per mistake, in the order of their lines.

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
        hint = did_you_mean(str(value), known)
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
    parts = iter(at)
    for part in parts:
        annotation: Any = model.model_fields[str(part)].annotation
        if get_origin(annotation) in (dict, list):
            next(parts, None)  # a name that the user chose, or a place in a list
        kinds = [item for item in (annotation, *get_args(annotation)) if isinstance(item, type)]
        sections = [item for item in kinds if issubclass(item, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
