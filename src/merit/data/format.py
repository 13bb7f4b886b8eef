"""A data format: how a row of a source becomes an `Example`, and what is wrong with a row that does not.

A format is one file that defines `FORMAT`: merit's own lie in `merit.data.formats`, anyone's in `merit_ext/formats/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from merit.base import extensions
from merit.base.errors import InputError, did_you_mean
from merit.config.sections import DatasetConfig, FormatName
from merit.data.example import Example, Message, Role
from merit.data.image import ImageRef
from merit.data.image_fields import NO_FOLDER, ImageSource, part_image, place_images, row_images

_PROBED = 20
_OF_ALL = ("system", "reference", "images")  # fields that every format has besides its own

Parts = tuple[tuple[Message, ...], tuple[Message, ...]]  # prompt, completion
Reader = Callable[[Mapping[str, Any], Mapping[str, str], ImageSource], Parts]


def _has_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return all(row.get(column) is not None for column in columns.values())


@dataclass(frozen=True)
class Format:
    """What a file of formats defines.

    Attributes:
        columns: field → the column that holds it, unless `columns` of the dataset names another. A literal: the schema
            takes the fields from the file's text, without importing it.
        read: (row, field → column, images) → prompt and completion. Raises InputError with the field at fault.
        order: of the formats that recognise a row, the one of the lowest order is taken.
        recognises: (row, field → column) → whether a dataset with such a row has this format.
    """

    columns: Mapping[str, str]
    read: Reader
    order: int = 100
    recognises: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = _has_columns


@cache
def known_formats() -> dict[FormatName, Format]:
    """Name → format, in the order in which they are tried on a row."""
    found = {name: extensions.load("formats", name) for name in extensions.names("formats")}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


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
        prompt, completion = known_formats()[self.name].read(row, self.columns, self.images)
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
                raise missing(row, column)
            return self.system
        return text_field(row, column) or self.system

    def _reference(self, row: Mapping[str, Any], completion: Sequence[Message]) -> str | None:
        if "reference" in self.columns:
            return text_of(row, self.columns["reference"])
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
            message = f"there is no column {column!r}; it has {_listed(present)}{did_you_mean(column, present)}"
            raise InputError(message, file=place, field=f"{at}.columns.{canonical}")
    name_of = config.format or next((name for name in known_formats() if _fits(name, config.columns, probed)), None)
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
    own = known_formats()[name_of].columns
    for canonical in config.columns:
        if canonical not in (*own, *_OF_ALL):
            raise InputError(
                f"the format `{name_of}` has no {canonical!r}; it has {_listed(own)}",
                file=place,
                field=f"{at}.columns.{canonical}",
            )
    return RowFormat(name_of, {**own, **config.columns}, config.system, place, images)


def _fits(name: FormatName, mapped: Mapping[Any, str], rows: Sequence[Mapping[str, Any]]) -> bool:
    known = known_formats()[name]
    columns = {field: mapped.get(field, column) for field, column in known.columns.items()}
    # Any of the rows, not all: the row that lacks a column is then named, rather than the whole file refused.
    return any(known.recognises(row, columns) for row in rows)


def answer(row: Mapping[str, Any], column: str) -> Message:
    """The assistant's turn that `column` holds.

    Raises:
        InputError: no such column, null, not text, or empty.
    """
    text = text_of(row, column)
    if not text.strip():
        raise InputError("the completion is empty", field=column)
    return Message("assistant", text)


def check_completion(turns: Sequence[Message], column: str, offset: int) -> None:
    """Raises InputError where an answer is empty; the first of `turns` is number `offset` of `column`."""
    for index, turn in enumerate(turns, start=offset):
        if turn.role == "assistant" and not turn.content.strip():
            raise InputError("the completion is empty", field=f"{column}[{index}].content")


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The text in `column`.

    Raises:
        InputError: no such column, null, or not text.
    """
    if row.get(column) is None:
        raise missing(row, column)
    return text_field(row, column)


def missing(row: Mapping[str, Any], column: str) -> InputError:
    """The error of a row that has nothing in `column`."""
    if column in row:
        return InputError("is null; a row needs it", field=column)
    return InputError(f"missing; the row has {_listed(row)}{did_you_mean(column, map(str, row))}", field=column)


def _listed(names: Any) -> str:
    shown = [str(name)[:40] for name in names]
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "") if shown else "no columns"


_ALIASES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "function_call"),
    "tool": ("tool", "function", "observation"),
}
ROLES: dict[str, Role] = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}


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
        hint = did_you_mean(role.lower(), ROLES, otherwise="; known: system, user, assistant, tool")
        raise InputError(f"unknown role {role[:40]!r}{hint}", field=f"{at}.{role_key}")
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
