"""A prompt and its completion, each text or a list of turns: {"prompt", "completion"}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.base.errors import InputError
from merit.data.example import Message
from merit.data.format import Format, Parts, answer, check_completion, missing, text_of
from merit.data.image_fields import ImageSource
from merit.data.turns import parse_turns


def _read(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    prompt, completion = columns["prompt"], columns["completion"]
    for column in (prompt, completion):
        if row.get(column) is None:
            raise missing(row, column)
    before: tuple[Message, ...]
    if isinstance(row[prompt], list):
        before = parse_turns(row[prompt], prompt, images)
    else:
        before = (Message("user", text_of(row, prompt)),)
    if not isinstance(row[completion], list):
        return before, (answer(row, completion),)
    after = parse_turns(row[completion], completion, images)
    if not any(turn.role == "assistant" for turn in after):
        raise InputError("no assistant turn, so there is nothing to learn", field=completion)
    check_completion(after, completion, 0)
    return before, after


_PAIRS = (
    ("prompt", "response"),
    ("input", "target"),
    ("inputs", "targets"),
    ("input", "output"),
    ("problem", "solution"),
    ("query", "response"),
)
FORMAT = Format(
    columns={"prompt": "prompt", "completion": "completion"},
    read=_read,
    order=30,
    spellings=[{"prompt": prompt, "completion": completion} for prompt, completion in _PAIRS],
)
