"""Conversations as OpenAI writes them: {"messages": [{"role", "content"}, …]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.base.errors import InputError
from merit.data.format import Format, Parts, check_completion, missing
from merit.data.image_fields import ImageSource
from merit.data.turns import listed_turns, parse_turns


def conversation(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    """All turns before the first answer to learn are the prompt, the others the completion."""
    column = columns["messages"]
    if row.get(column) is None:
        raise missing(row, column)
    turns = parse_turns(listed_turns(row[column]), column, images)
    first = next((i for i, turn in enumerate(turns) if turn.supervised), None)
    if first is None:
        masked = any(turn.role == "assistant" for turn in turns)
        what = "every assistant turn is masked" if masked else "no assistant turn"
        raise InputError(f"{what}, so there is nothing to learn", field=column)
    check_completion(turns[first:], column, first)
    return turns[:first], turns[first:]


FORMAT = Format(
    columns={"messages": "messages"},
    read=conversation,
    order=10,
    spellings=[{"messages": column} for column in ("conversation", "dialog", "dialogue", "chat")],
)
