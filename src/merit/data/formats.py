"""Formats: how a row of a source becomes an `Example`. All that can be wrong with a row is said here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merit.base.errors import InputError
from merit.config.mixture import DatasetConfig, FormatName
from merit.data.example import Example, Message
from merit.data.image_fields import NO_FOLDER, ImageSource, place_images, row_images
from merit.data.template import parse_turns, text_field

# Format → canonical field → the column it is in, unless `columns` says otherwise.
COLUMNS: dict[FormatName, dict[str, str]] = {
    "messages": {"messages": "messages"},
    "sharegpt": {"messages": "conversations"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "alpaca": {"prompt": "instruction", "completion": "output"},
    "qa": {"prompt": "question", "completion": "answer"},
}
_PROBED = 20


@dataclass(frozen=True)
class RowFormat:
    """One dataset's format with its columns resolved; turns rows into examples."""

    name: FormatName
    columns: Mapping[str, str]
    system: str | None
    place: str
    images: ImageSource = NO_FOLDER

    def parse(self, row: Any, number: int) -> Example:
        """The example in `row`, the source's `number`-th.

        An optional column `system` is used where the conversation brings no system message of its own. Turns after
        the last assistant turn are dropped: no token of them can carry loss.

        Raises:
            InputError: names file, line and field.
        """
        try:
            return self._parse(row)
        except InputError as error:
            raise type(error)(error.message, file=self.place, line=number, field=error.field) from None

    def _parse(self, row: Any) -> Example:
        if not isinstance(row, dict):
            raise InputError(f"a row must be an object, not {type(row).__name__}")
        prompt, completion = _READERS[self.name](row, self.columns, self.images)
        given = row_images(row, self.columns.get("images"), self.images)
        if given or any(turn.images for turn in (*prompt, *completion)):
            prompt, completion = place_images(prompt, completion, given)
        last = max((i for i, turn in enumerate(completion) if turn.role == "assistant"), default=-1)
        completion = completion[: last + 1]
        if not any(turn.role == "system" for turn in prompt):
            system = self._system(row)
            if system:
                prompt = (Message("system", system), *prompt)
        example = Example(prompt, completion, self._reference(row, completion), row.get("verifier"))
        for image in example.images:
            _ = image.digest  # a missing file is this row's mistake
        return example

    def _system(self, row: Mapping[str, Any]) -> str | None:
        column = self.columns.get("system", "system")
        if row.get(column) is None:
            if "system" in self.columns and column not in row:
                raise _missing(row, column)
            return self.system
        return text_field(row, column) or self.system

    def _reference(self, row: Mapping[str, Any], completion: Sequence[Message]) -> str | None:
        if "reference" in self.columns:
            return _text(row, self.columns["reference"])
        return completion[0].content.strip() if len(completion) == 1 else None


def choose_format(
    config: DatasetConfig, rows: Sequence[Any], place: str, at: str, images: ImageSource = NO_FOLDER
) -> RowFormat:
    """The named format, or the one that the first rows have. `at` is the dataset's field in the configuration.

    Raises:
        InputError: a mapped column is in none of the rows, a mapping that the format has no use for, or no format fits.
    """
    probed = [row for row in rows[:_PROBED] if isinstance(row, dict)]
    present = sorted({str(key) for row in probed for key, value in row.items() if value is not None})
    for canonical, column in config.columns.items():
        if probed and column not in present:
            near = f"{_nearest(column, present)}; it has {_listed(present)}"
            message = f"there is no column {column!r}{near}"
            raise InputError(message, file=place, field=f"{at}.columns.{canonical}")
    name_of = config.format or next((known for known in COLUMNS if _fits(known, config.columns, probed)), None)
    if name_of is None:
        if rows and not probed:
            # Not one object among the first rows: let the first row's own message say so.
            name_of = "messages"
        else:
            raise InputError(
                f"no known format fits ({_listed(present)}); name the columns, e.g. "
                "columns: {prompt: question, completion: answer}",
                file=place,
                field=f"{at}.format",
            )
    for canonical in config.columns:
        if canonical not in {*COLUMNS[name_of], "system", "reference", "images"}:
            raise InputError(
                f"the format `{name_of}` has no {canonical!r}; it has {_listed(COLUMNS[name_of])}",
                file=place,
                field=f"{at}.columns.{canonical}",
            )
    columns: dict[str, str] = {**COLUMNS[name_of], **dict(config.columns.items())}
    return RowFormat(name_of, columns, config.system, place, images)


def _fits(name: FormatName, mapped: Mapping[Any, str], rows: Sequence[Mapping[str, Any]]) -> bool:
    columns = [mapped.get(field, column) for field, column in COLUMNS[name].items()]
    # Any of the rows, not all: the row that lacks a column is then named, rather than the whole file refused.
    return any(all(row.get(column) is not None for column in columns) for row in rows)


Parts = tuple[tuple[Message, ...], tuple[Message, ...]]


def _conversation(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    column = columns["messages"]
    if row.get(column) is None:
        raise _missing(row, column)
    turns = parse_turns(row[column], column, images)
    first = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), None)
    if first is None:
        raise InputError("no assistant turn, so there is nothing to learn", field=column)
    _check_completion(turns[first:], column, first)
    return turns[:first], turns[first:]


def _prompt_completion(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    prompt, completion = columns["prompt"], columns["completion"]
    for column in (prompt, completion):
        if row.get(column) is None:
            raise _missing(row, column)
    before: tuple[Message, ...]
    if isinstance(row[prompt], list):
        before = parse_turns(row[prompt], prompt, images)
    else:
        before = (Message("user", _text(row, prompt)),)
    if not isinstance(row[completion], list):
        return before, (_answer(row, completion),)
    after = parse_turns(row[completion], completion, images)
    if not any(turn.role == "assistant" for turn in after):
        raise InputError("no assistant turn, so there is nothing to learn", field=completion)
    _check_completion(after, completion, 0)
    return before, after


def _alpaca(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    question = _text(row, columns["prompt"])
    if row.get("input") is not None and (more := text_field(row, "input")).strip():
        question = f"{question}\n\n{more}"
    return (Message("user", question),), (_answer(row, columns["completion"]),)


def _qa(row: Mapping[str, Any], columns: Mapping[str, str], images: ImageSource) -> Parts:
    return (Message("user", _text(row, columns["prompt"])),), (_answer(row, columns["completion"]),)


_READERS: dict[FormatName, Callable[[Mapping[str, Any], Mapping[str, str], ImageSource], Parts]] = {
    "messages": _conversation,
    "sharegpt": _conversation,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "qa": _qa,
}


def _answer(row: Mapping[str, Any], column: str) -> Message:
    text = _text(row, column)
    if not text.strip():
        raise InputError("the completion is empty", field=column)
    return Message("assistant", text)


def _check_completion(turns: Sequence[Message], column: str, offset: int) -> None:
    for index, turn in enumerate(turns, start=offset):
        if turn.role == "assistant" and not turn.content.strip():
            raise InputError("the completion is empty", field=f"{column}[{index}].content")


def _text(row: Mapping[str, Any], column: str) -> str:
    if row.get(column) is None:
        raise _missing(row, column)
    return text_field(row, column)


def _missing(row: Mapping[str, Any], column: str) -> InputError:
    if column in row:
        return InputError("is null; a row needs it", field=column)
    return InputError(f"missing{_nearest(column, list(row))}; the row has {_listed(row)}", field=column)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _listed(names: Any) -> str:
    shown = [str(name)[:40] for name in names]
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "") if shown else "no columns"
