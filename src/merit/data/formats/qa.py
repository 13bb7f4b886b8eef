"""A question and its answer: {"question", "answer"}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.data.example import Message
from merit.data.format import Format, Parts, answer, text_of
from merit.data.image_fields import ImageSource


def _read(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    return (Message("user", text_of(row, columns["prompt"])),), (answer(row, columns["completion"]),)


FORMAT = Format(
    columns={"prompt": "question", "completion": "answer"},
    read=_read,
    order=50,
    spellings=[{"prompt": "question", "completion": "response"}],
)
