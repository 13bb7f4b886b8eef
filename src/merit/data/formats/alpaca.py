"""Instructions as Alpaca writes them: {"instruction", "input", "output"}; `input` may be empty or missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.data.example import Message
from merit.data.format import Format, Parts, answer, text_field, text_of
from merit.data.image_fields import ImageSource


def _read(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    question = text_of(row, columns["prompt"])
    if row.get("input") is not None and (more := text_field(row, "input")).strip():
        question = f"{question}\n\n{more}"
    return (Message("user", question),), (answer(row, columns["completion"]),)


FORMAT = Format(columns={"prompt": "instruction", "completion": "output"}, read=_read, order=40)
