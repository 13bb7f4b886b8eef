"""Instructions as Alpaca writes them: {"instruction", "input", "output"}, and Dolly's {"instruction", "context",
"response"}. `input` may be empty or missing; `history` holds earlier turns, [[question, answer], …]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.base.errors import InputError
from merit.data.example import Message
from merit.data.format import Format, Parts, answer, text_field, text_of
from merit.data.image_fields import ImageSource
from merit.data.turns import checked_text


def _read(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    """Earlier answers are learned, too, as in LLaMA-Factory, which has brought `history`."""
    question = text_of(row, columns["prompt"])
    if row.get(columns["input"]) is not None and (more := text_field(row, columns["input"])).strip():
        question = f"{question}\n\n{more}" if question.strip() else more
    turns = [*_history(row, columns["history"]), Message("user", question), answer(row, columns["completion"])]
    return (turns[0],), tuple(turns[1:])


def _history(row: Mapping[str, Any], column: str) -> list[Message]:
    value = row.get(column)
    if value in (None, ""):
        return []
    if not isinstance(value, list):
        raise InputError("must be a list of [question, answer]", field=column)
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError("must be [question, answer]", field=f"{column}[{index}]")
        for role, side in (("user", 0), ("assistant", 1)):
            text = checked_text(pair[side], f"{column}[{index}][{side}]")
            turns.append(Message("assistant" if role == "assistant" else "user", text))
    return turns


FORMAT = Format(
    columns={"prompt": "instruction", "completion": "output"},
    read=_read,
    order=40,
    optional={"input": "input", "history": "history"},
    spellings=[
        {"prompt": "instruction", "completion": "response", "input": "context"},
        {"prompt": "instruction", "completion": "response"},
        {"prompt": "query", "completion": "response"},  # ms-swift's, where it has a history
    ],
)
