"""Turns of a conversation, as OpenAI (`role`, `content`) and ShareGPT (`from`, `value`) write them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from merit.data.example import Message, Role
from merit.data.image import ImageRef
from merit.data.image_fields import NO_FOLDER, ImageSource, part_image
from merit.errors import InputError

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def parse_turns(value: Any, at: str, images: ImageSource = NO_FOLDER) -> tuple[Message, ...]:
    """The messages in `value`; `at` is the field it came from, for error messages.

    Raises:
        InputError: not a list of objects, an unknown role, content that is not text; names `messages[2].role`.
    """
    if not isinstance(value, list):
        raise InputError(f"must be a list of messages, not {kind_of(value)}", field=at)
    return tuple(_turn(item, f"{at}[{index}]", images) for index, item in enumerate(value))


def _turn(item: Any, at: str, images: ImageSource) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"must be an object with `role` and `content`, not {kind_of(item)}", field=at)
    # Arrow fills the keys that only other rows have with null.
    present = {key: value for key, value in item.items() if value is not None}
    role_key = "from" if "from" in present and "role" not in present else "role"
    text_key = "value" if "value" in present and "content" not in present else "content"
    if role_key not in present:
        raise InputError("missing", field=f"{at}.{role_key}")
    role = present[role_key]
    if not isinstance(role, str):
        raise InputError(f"must be text, not {kind_of(role)}", field=f"{at}.{role_key}")
    known = ROLES.get(role.lower())
    if known is None:
        near = difflib.get_close_matches(role.lower(), ROLES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "known: system, user, assistant, tool"
        raise InputError(f"unknown role {role[:40]!r}; {hint}", field=f"{at}.{role_key}")
    if present.get("tool_calls"):
        raise InputError("tool calls cannot be rendered yet; write them into `content`", field=f"{at}.tool_calls")
    if text_key not in present:
        raise InputError("missing", field=f"{at}.{text_key}")
    if isinstance(present[text_key], list):
        return _joined(known, present[text_key], f"{at}.{text_key}", images)
    return Message(known, checked_text(present[text_key], f"{at}.{text_key}"))


def _joined(role: Role, parts: list[Any], at: str, images: ImageSource) -> Message:
    """OpenAI's list of content parts: text and images."""
    text = ""
    found: list[tuple[int, ImageRef]] = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind == "text":
            text += checked_text(part.get("text"), f"{at}[{index}].text")
        elif isinstance(part, dict) and kind in ("image", "image_url"):
            found.append((len(text), part_image(part, images, f"{at}[{index}]")))
        else:
            what = str(kind if isinstance(part, dict) else kind_of(part))[:40]
            raise InputError(f"only text and image parts are supported, not {what!r}", field=f"{at}[{index}].type")
    return Message(role, text, tuple(found))


def text_field(row: Mapping[str, Any], column: str) -> str:
    """The text in `column`."""
    return checked_text(row[column], column)


def checked_text(value: Any, at: str) -> str:
    """`value`, if it is text that can be encoded.

    Raises:
        InputError: another type, or half a surrogate pair (`"\\ud800"` is valid JSON, but no text).
    """
    if not isinstance(value, str):
        raise InputError(f"must be text, not {kind_of(value)}", field=at)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("holds half a surrogate pair, which is no text", field=at) from None
    return value


def kind_of(value: Any) -> str:
    """A JSON value's type in words, with a short value: `a number (42)`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({str(value)[:20]})"
    if isinstance(value, str):
        return f"text ({value[:20]!r})"
    return "a list" if isinstance(value, list) else "an object"
