"""Multiple choice as ARC, CommonsenseQA, OpenBookQA and MMLU write it: a question, its choices, and the label or the
number of the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.base.errors import InputError
from merit.data.example import Message
from merit.data.format import Format, Parts, missing, reasoned
from merit.data.image_fields import ImageSource
from merit.data.turns import checked_text, kind_of

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _read(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    """The prompt is the question and a line a choice, `B. text`; the answer is the right one's line."""
    question, choices, at = _parts(row, columns)
    if question is None:
        raise missing(row, columns["prompt"])
    lines = _lines(choices, at)
    key = row.get(columns["completion"])
    if key is None:
        raise missing(row, columns["completion"])
    label = str(key).strip()
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(lines):
        label = list(lines)[key]
    if label not in lines:
        raise InputError(
            f"names no choice; there are {', '.join(lines)}, not {kind_of(key)}", field=columns["completion"]
        )
    prompt = "\n".join([checked_text(question, columns["prompt"]), "", *lines.values()])
    return (Message("user", prompt),), (reasoned(row, lines[label]),)


def _parts(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Any, Any, str]:
    """Question, choices, and the field of the choices, which may lie within the question."""
    question = row.get(columns["prompt"])
    if isinstance(question, Mapping):
        return question.get("stem"), question.get("choices"), f"{columns['prompt']}.choices"
    return question, row.get(columns["choices"]), columns["choices"]


def _lines(choices: Any, at: str) -> dict[str, str]:
    """Label → line."""
    if isinstance(choices, Mapping):
        texts, labels = choices.get("text"), choices.get("label")
    elif isinstance(choices, list) and all(isinstance(item, Mapping) for item in choices):
        texts, labels = [item.get("text") for item in choices], [item.get("label") for item in choices]
    else:
        texts, labels = choices, None
    if not isinstance(texts, list) or not 1 < len(texts) <= len(_LETTERS):
        raise InputError(f"must be a list of 2 to {len(_LETTERS)} choices", field=at)
    labels = labels if labels is not None else list(_LETTERS[: len(texts)])
    if not isinstance(labels, list) or len(labels) != len(texts) or len({str(label) for label in labels}) < len(texts):
        raise InputError("must have one label a choice", field=at)
    found = {str(label): checked_text(text, at) for label, text in zip(labels, texts, strict=True)}
    return {label: f"{label}. {text}" for label, text in found.items()}


def _recognises(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Choices, and a key that is a label or, under any other name, a number: an answer in words is `qa`'s."""
    question, choices, _ = _parts(row, columns)
    key = row.get(columns["completion"])
    number = isinstance(key, int) and not isinstance(key, bool)
    return bool(choices) and question is not None and (number or (key is not None and _is_key(columns["completion"])))


def _is_key(column: str) -> bool:
    return column.lower() in ("answerkey", "answer_key")


FORMAT = Format(
    columns={"prompt": "question", "completion": "answerKey"},
    read=_read,
    order=45,
    recognises=_recognises,
    optional={"choices": "choices"},
    spellings=[
        {"prompt": "question_stem", "completion": "answerKey"},
        {"prompt": "question", "completion": "answer"},
    ],
)
