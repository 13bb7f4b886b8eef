"""Tools and tool calls in the ways that rows write them, made into the one way that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from merit.base.errors import InputError

COLUMNS = ("tools", "functions")


def row_tools(row: Mapping[str, Any], named: str | None) -> str | None:
    """The functions that the row offers, as the JSON list `[{"type": "function", "function": {…}}, …]`; None for none.

    A list or its JSON text; each function with or without its wrapper. Nulls in objects are left out, where they are no
    text: Arrow fills the keys that only other rows have with null.

    Raises:
        InputError: not a list of objects with a name.
    """
    column = named or next((name for name in COLUMNS if row.get(name) not in (None, "", [], "[]")), None)
    value = row.get(column) if column is not None else None
    if column is None or value in (None, "", []):
        return None
    found = _from_text(value, column)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list):
        raise InputError("must be a list of functions, or its JSON text", field=column)
    meant = isinstance(value, str)
    tools = [_tool(item, f"{column}[{index}]", meant=meant) for index, item in enumerate(found)]
    return json.dumps(tools, ensure_ascii=False) if tools else None


def _tool(item: Any, at: str, *, meant: bool) -> dict[str, Any]:
    """`meant`: nulls are the author's own."""
    meant = meant or isinstance(item, str)
    item = _from_text(item, at)
    inner = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise InputError("must be an object with the function's `name`", field=at)
    return {"type": "function", "function": inner if meant else _without_nulls(inner)}


def tool_calls(value: Any, at: str) -> list[dict[str, Any]]:
    """The calls of an assistant turn, as `{"type": "function", "function": {"name", "arguments"}}`, with an `id` where
    there is one. Arguments become an object; the template decides how they are written.

    Raises:
        InputError: not a list of objects, no name, arguments that are neither an object nor the JSON text of one.
    """
    value = _from_text(value, at)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise InputError("must be a list of tool calls", field=at)
    return [_call(item, f"{at}[{index}]") for index, item in enumerate(value)]


def _call(item: Any, at: str) -> dict[str, Any]:
    inner = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise InputError("must be an object with the function's `name`", field=at)
    given = inner.get("arguments", inner.get("parameters"))
    arguments = _from_text(given, f"{at}.arguments") if given not in (None, "") else {}
    if not isinstance(arguments, Mapping):
        raise InputError("must be an object, or the JSON text of one", field=f"{at}.arguments")
    if not isinstance(given, str):
        arguments = _without_nulls(arguments)
    call: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return call | ({"id": item["id"]} if isinstance(item.get("id"), str) else {})


def spoken_calls(text: str) -> list[dict[str, Any]] | None:
    """The calls in the text of a `function_call` turn: the JSON of one call or of a list. None where the text is
    something else, which is then the turn's content as it stands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in calls):
        return None
    return tool_calls(calls, "value")


def _from_text(value: Any, at: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InputError("is text that is not valid JSON", field=at) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
