"""The turns of a conversation, in the spellings that data come in: roles, masks, reasoning, calls, parts of content."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merit.base.errors import InputError, did_you_mean
from merit.data.example import Message, Role
from merit.data.image import ImageRef
from merit.data.image_fields import NO_FOLDER, ImageSource, part_image
from merit.data.tools import spoken_calls, tool_calls

_ALIASES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response"),
}
_SPEAKERS: dict[Role, tuple[str, ...]] = {
    "system": ("system",),
    "user": ("human", "user", "input"),
    "assistant": ("assistant", "gpt", "bot", "output"),
}
_CALLING = ("function_call", "tool_call")  # roles of a turn whose text is the JSON of a call
_MASKS = ("weight", "loss_weight", "loss", "train", "training")  # of a turn: whether it is learned
_PARTIAL_MASKS = ("training_detail", "train_detail")
ROW_REASONING = ("reasoning_content", "thinking")
_REASONING = (*ROW_REASONING, "reasoning")
_TURN_KEYS = frozenset(
    ("role", "from", "content", "value", "tool_calls", "function_call", *_MASKS, *_PARTIAL_MASKS, *_REASONING)
).union(*_SPEAKERS.values())
_TOOL_KEYS = _TURN_KEYS | {"name", "tool_call_id"}
OF_TURNS = ("messages", "prompt", "completion")  # fields that may hold turns
ROLES: dict[str, Role] = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}


def parse_turns(value: Any, at: str, images: ImageSource = NO_FOLDER) -> tuple[Message, ...]:
    """The messages in `value`; `at` is the field it came from, for error messages.

    Raises:
        InputError: not a list of objects, an unknown role, content that is not text; names `messages[2].role`.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        raise InputError("is text, but not the JSON of a list of messages; write it with json.dumps", field=at)
    if not isinstance(value, list):
        raise InputError(f"must be a list of messages, not {kind_of(value)}", field=at)
    return tuple(turn for index, item in enumerate(value) for turn in _turns(item, f"{at}[{index}]", images))


def listed_turns(value: Any) -> Any:
    """What a column that holds nothing but a conversation means: the list in a JSON text, as CSV has it; texts that
    speak in turn, user first, as LIMA and UltraChat have them. Anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(value)]
    return value


def _turns(item: Any, at: str, images: ImageSource) -> list[Message]:
    """The turn that `item` is, or those of an exchange under the speakers' names: {"human": …, "assistant": …}."""
    if not isinstance(item, dict) or any(item.get(key) is not None for key in ("role", "from", "content", "value")):
        return [_turn(item, at, images)]
    said = [(role, key) for role, keys in _SPEAKERS.items() for key in keys if item.get(key) not in (None, "")]
    if not {"user", "assistant"} <= {role for role, _ in said}:
        return [_turn(item, at, images)]
    for (role, key), (before, _) in zip(said[1:], said[:-1], strict=True):
        if role == before:
            raise InputError("a second text of the same speaker", field=f"{at}.{key}")
    return [Message(role, checked_text(item[key], f"{at}.{key}")) for role, key in said]


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
        hint = did_you_mean(role.lower(), ROLES, otherwise="; known: system, user, assistant, tool")
        raise InputError(f"unknown role {role[:40]!r}{hint}", field=f"{at}.{role_key}")
    fields = _more(present, known, at)
    if text_key not in present and "tool_calls" in fields:
        present[text_key] = ""
    if text_key not in present:
        raise InputError("missing", field=f"{at}.{text_key}")
    if isinstance(present[text_key], list):
        turn = _joined(known, present[text_key], f"{at}.{text_key}", images)
    else:
        turn = Message(known, checked_text(present[text_key], f"{at}.{text_key}"))
    if role.lower() in _CALLING and (calls := spoken_calls(turn.content)) is not None:
        turn, fields = replace(turn, content=""), {**fields, "tool_calls": calls}
    return replace(turn, learned=_is_learned(present, known, at), fields=message_fields(fields))


def message_fields(found: Mapping[str, Any]) -> str:
    """What else the chat template may show of a turn, as `Message.fields` holds it."""
    return checked_text(json.dumps(found, ensure_ascii=False), "tool_calls") if found else ""


def _more(turn: Mapping[str, Any], role: Role, at: str) -> dict[str, Any]:
    """What else of a turn the chat template may show: as `Message.fields`."""
    found: dict[str, Any] = {}
    key = next((key for key in _REASONING if turn.get(key) not in (None, "")), None)
    if key is not None:
        if role != "assistant":
            raise InputError("only an assistant turn can have it", field=f"{at}.{key}")
        found["reasoning"] = checked_text(turn[key], f"{at}.{key}")
    key = next((key for key in ("tool_calls", "function_call") if turn.get(key) not in (None, "", [], "[]")), None)
    if key is not None:
        if role != "assistant":
            raise InputError("only an assistant turn can have it", field=f"{at}.{key}")
        found["tool_calls"] = tool_calls(turn[key], f"{at}.{key}")
    if role == "tool":
        found |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return found


def keys_read(turn: Mapping[str, Any]) -> frozenset[str]:
    """The keys of a turn that merit reads, or refuses."""
    tool = ROLES.get(str(turn.get("role") or turn.get("from")).lower()) == "tool"
    return _TOOL_KEYS if tool else _TURN_KEYS


def _is_learned(turn: Mapping[str, Any], role: Role, at: str) -> bool:
    """Whether the turn's own mask lets it be learned; true without one.

    Raises:
        InputError: a mask that is neither yes nor no; two that differ; one that wants another role's turn learned.
    """
    learned = True
    given = [key for key in _MASKS if key in turn]
    for key in given:
        if not isinstance(turn[key], bool | int | float) or turn[key] not in (0, 1):
            raise InputError(f"must be 0 or 1, true or false, not {kind_of(turn[key])}", field=f"{at}.{key}")
        if key != given[0] and turn[key] != turn[given[0]]:
            raise InputError(f"contradicts `{given[0]}`", field=f"{at}.{key}")
        learned = bool(turn[key])
    if given and learned and role != "assistant":
        raise InputError("only assistant turns can be learned; set it to 0, or leave it out", field=f"{at}.{given[0]}")
    if key_of_part := next((key for key in _PARTIAL_MASKS if turn.get(key)), None):
        raise InputError(
            "a part of a turn cannot be masked; split the turn, or leave it out", field=f"{at}.{key_of_part}"
        )
    return learned


def _joined(role: Role, parts: list[Any], at: str, images: ImageSource) -> Message:
    """OpenAI's list of content parts: text and images."""
    text = ""
    found: list[tuple[int, ImageRef]] = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            text += checked_text(part, f"{at}[{index}]")
        elif isinstance(part, dict) and kind in ("text", "input_text", "output_text"):
            key = "value" if part.get("text") is None and part.get("value") is not None else "text"
            text += checked_text(part.get(key), f"{at}[{index}].{key}")
        elif isinstance(part, dict) and kind in ("image", "image_url"):
            found.append((len(text), part_image(part, images, f"{at}[{index}]")))
        else:
            what = str(kind if isinstance(part, dict) else kind_of(part))[:40]
            raise InputError(f"only text and image parts are supported, not {what!r}", field=f"{at}[{index}].type")
    return Message(role, text, tuple(found))


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
