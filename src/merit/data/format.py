"""A data format: how a row of a source becomes an `Example`, and what is wrong with a row that does not.

A format is one file that defines `FORMAT`: merit's own lie in `merit.data.formats`, anyone's in `merit_ext/formats/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isnan
from typing import Any

from merit.base import extensions
from merit.base.errors import InputError, did_you_mean
from merit.config.sections import DatasetConfig, FormatName
from merit.data.example import Example, Message
from merit.data.image_fields import NO_FOLDER, ImageSource, place_images, row_images
from merit.data.tools import row_tools
from merit.data.turns import OF_TURNS, ROW_REASONING, checked_text, keys_read, listed_turns, message_fields

_PROBED = 20
_OF_ALL = ("system", "reference", "images", "tools")  # fields that every format has besides its own
# Columns that every format reads, or refuses, under their own names.
_READ = ("system", "system_prompt", "images", "image", "tools", "functions", "verifier")
_LABELS = ("label", "kto_tag")
_REFUSED = ("videos", "video", "audios", "audio")
# Columns that speak to the model: another spelling of a format does not fit a row where it would leave one out.
_SPEAKING = {"instruction", "question", "prompt", "query", "problem", "input", "inputs", "context", "passage", "text"}
_SPEAKING |= {"history", "messages", "conversations", "conversation", "chosen", "rejected", "choices", "options"}
_PREFERENCES = "preference data: merit learns the good answers only; "

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
        optional: as `columns`, for what a row may lack.
        spellings: other names under which people write the same fields; tried where no format fits by its own.
    """

    columns: Mapping[str, str]
    read: Reader
    order: int = 100
    recognises: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = _has_columns
    optional: Mapping[str, str] = field(default_factory=dict)
    spellings: Sequence[Mapping[str, str]] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that `columns` of a dataset can name."""
        return (*self.columns, *self.optional, *_OF_ALL)


@cache
def known_formats() -> dict[FormatName, Format]:
    """Name → format, in the order in which they are tried on a row."""
    found = {name: extensions.load("formats", name) for name in extensions.names("formats")}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def format_marks(names: Sequence[FormatName | None]) -> list[str]:
    """What fingerprints hold of the formats of these names; None: of any that rows may be recognised by."""
    wanted = {name for name in names if name is not None}
    wanted |= set(extensions.foreign("formats")) if None in names else set()
    return [mark for name in sorted(wanted) for mark in extensions.marks("formats", name)]


@dataclass(frozen=True)
class RowFormat:
    """One dataset's format with its columns resolved; turns rows into examples.

    Attributes:
        unread: what rows hold that nothing reads → the row that first does; filled while rows are parsed.
    """

    name: FormatName
    columns: Mapping[str, str]
    system: str | None
    place: str
    images: ImageSource = NO_FOLDER
    unread: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def parse(self, row: Any, number: int, place: str | None = None) -> Example:
        """The example in `row`, the `number`-th of the source, or of its file `place`.

        An optional column `system` is used where the conversation brings no system message of its own. Turns after
        the last supervised turn are dropped: no token of them can carry loss.

        Raises:
            InputError: names file, line and field.
        """
        try:
            if isinstance(row, dict):  # pandas writes NaN where there is nothing
                row = {key: None if isinstance(item, float) and isnan(item) else item for key, item in row.items()}
            example = self._parse(row)
            for name in self._unread(row, example):
                self.unread.setdefault(name, number)
            return example
        except InputError as error:
            raise type(error)(error.message, file=place or self.place, line=number, field=error.field) from None

    def _parse(self, row: Any) -> Example:
        if not isinstance(row, dict):
            raise InputError(f"a row must be an object, not {type(row).__name__}")
        _check_row(row, set(self.columns.values()))
        prompt, completion = known_formats()[self.name].read(row, self.columns, self.images)
        given = row_images(row, self.columns.get("images"), self.images)
        if given or any(turn.images for turn in (*prompt, *completion)):
            prompt, completion = place_images(prompt, completion, given)
        last = max((i for i, turn in enumerate(completion) if turn.supervised), default=-1)
        if last < 0:
            raise InputError("every assistant turn is masked, so there is nothing to learn")
        completion = completion[: last + 1]
        if not any(turn.role == "system" for turn in prompt):
            system = self._system(row)
            if system:
                prompt = (Message("system", system), *prompt)
        if (tools := row_tools(row, self.columns.get("tools"))) is not None:
            checked_text(tools, self.columns.get("tools", "tools"))
        example = Example(prompt, completion, self._reference(row, completion), row.get("verifier"), tools)
        for image in example.images:
            _ = image.digest  # a missing file is this row's mistake
        return example

    def _system(self, row: Mapping[str, Any]) -> str | None:
        column = self.columns.get("system", "system" if row.get("system") is not None else "system_prompt")
        if row.get(column) is None:
            if "system" in self.columns and column not in row:
                raise missing(row, column)
            return self.system
        return text_field(row, column) or self.system

    def _reference(self, row: Mapping[str, Any], completion: Sequence[Message]) -> str | None:
        if "reference" in self.columns:
            return text_of(row, self.columns["reference"])
        if len(completion) > 1 or "tool_calls" in completion[0].more:
            return None
        return completion[0].content.strip()

    def _unread(self, row: Mapping[str, Any], example: Example) -> Iterator[str]:
        known = {*self.columns.values(), *_READ, *(ROW_REASONING if "completion" in self.columns else ())}
        known.update(column for column in _LABELS if _truth(row.get(column)) is not None)
        for column, value in row.items():
            if column not in known and value is not None:
                yield str(column)
        system = [turn.content for turn in example.prompt if turn.role == "system"]
        for column in {self.columns.get("system", "system"), "system_prompt"}:
            if isinstance(row.get(column), str) and row[column].strip() and row[column] not in system:
                yield column
        for column in (self.columns[name] for name in OF_TURNS if name in self.columns):
            turns = listed_turns(row.get(column)) if "messages" in self.columns else row.get(column)
            for turn in turns if isinstance(turns, list) else ():  # all are objects: the row has been read
                read = keys_read(turn)
                yield from (f"{column}[].{key}" for key, item in turn.items() if item is not None and key not in read)


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
    found = _detected(config, probed)
    if found is None and rows and not probed:
        # Not one object among the first rows: let the first row's own message say so.
        found = "messages", known_formats()["messages"].columns
    if found is None:
        message = (
            f"no known format fits ({_listed(present)}); name the columns, e.g. "
            "columns: {prompt: question, completion: answer}"
        )
        if {"chosen", "rejected"} <= set(present):
            turns = any(isinstance(row.get("chosen"), list) for row in probed)
            message = f"{_PREFERENCES}name them: columns: {{{'messages' if turns else 'completion'}: chosen}}"
            if not turns and "prompt" not in present:
                message = f"{_PREFERENCES}`chosen` holds a whole conversation as text: make it a list of turns"
        elif present == ["text"]:
            message = "raw text: merit learns answers; split `text` into a prompt and a completion"
        raise InputError(message, file=place, field=f"{at}.format")
    name, own = found
    known = known_formats()[name]
    for canonical in config.columns:
        if canonical not in known.fields:
            raise InputError(
                f"the format `{name}` has no {canonical!r}; it has {_listed([*known.columns, *known.optional])}",
                file=place,
                field=f"{at}.columns.{canonical}",
            )
    return RowFormat(name, {**known.optional, **own, **config.columns}, config.system, place, images)


def _detected(config: DatasetConfig, rows: Sequence[Mapping[str, Any]]) -> tuple[FormatName, Mapping[str, str]] | None:
    """The format of `rows` with its columns: the named one, or the first that fits by its own columns; then one that
    fits by another spelling.

    Of formats that fit a mapping, one that knows all mapped fields goes before, and so does one of whose columns the
    mapping names some and whose optional ones are in the rows: `{prompt: instruction, completion: response}` beside
    `input` is Alpaca's, and keeps `input`.
    """
    mapped: Mapping[Any, str] = config.columns
    formats = {name: item for name, item in known_formats().items() if config.format in (None, name)}
    present = {key for row in rows for key, value in row.items() if value is not None} - {*mapped.values()}

    def fits(known: Format, columns: Mapping[str, str]) -> bool:
        named = columns if known.recognises is _has_columns else {**known.optional, **columns}
        wanted = {canonical: mapped.get(canonical, column) for canonical, column in named.items()}
        # Any of the rows, not all: the row that lacks a column is then named, rather than the whole file refused.
        return any(known.recognises(row, wanted) for row in rows)

    def distance(name: FormatName) -> tuple[bool, bool]:
        known = formats[name]
        named = any(mapped.get(canonical) == column for canonical, column in known.columns.items())
        kin = named and any(column in present for column in known.optional.values())
        return not set(mapped) <= set(known.fields), not kin

    own: dict[FormatName, Mapping[str, str]] = {}
    for name, known in formats.items():
        precise = known.spellings if known.recognises is not _has_columns else ()
        if (columns := next((item for item in (known.columns, *precise) if fits(known, item)), None)) is not None:
            own[name] = columns
    if own:
        name = min(own, key=distance)
        return name, own[name]
    for name, known in formats.items():
        for columns in known.spellings:
            left = present - {*columns.values(), *known.optional.values()}
            if fits(known, columns) and not left & _SPEAKING:
                return name, columns
    # A format by name meets its rows, which say what they lack.
    return (config.format, formats[config.format].columns) if config.format is not None else None


def _check_row(row: Mapping[str, Any], mapped: Collection[str]) -> None:
    """Refuses what would be learned, or left out, against the row's meaning, where no column in `mapped` gives it one.

    Raises:
        InputError: a bad answer of preference data, or one turn of it in two versions; a video or sound.
    """
    for column in _LABELS:
        if column not in mapped and _truth(row.get(column)) is False:
            raise InputError(
                "false marks a bad answer of preference data, which merit would learn; keep the rows with true, "
                "or set `on_bad_row: skip`",
                field=column,
            )
    if "chosen" not in mapped and isinstance(row.get("chosen"), Mapping) and row.get("rejected") is not None:
        raise InputError(f"{_PREFERENCES}append `chosen` to the conversation", field="chosen")
    for column in _REFUSED:
        value = row.get(column) if column not in mapped else None
        if value and (column.endswith("s") or not isinstance(value, str | int | float)):
            raise InputError("merit reads text and images only; take these rows out", field=column)


def _truth(value: Any) -> bool | None:
    """A truth value, or the text of one, as CSV has it."""
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())


def answer(row: Mapping[str, Any], column: str) -> Message:
    """The assistant's turn that `column` holds.

    Raises:
        InputError: no such column, null, not text, or empty.
    """
    text = text_of(row, column)
    if not text.strip():
        raise InputError("the completion is empty", field=column)
    return reasoned(row, text)


def reasoned(row: Mapping[str, Any], text: str) -> Message:
    """The assistant's turn `text`, after the reasoning that the row has for it in a column of its own."""
    key = next((key for key in ROW_REASONING if isinstance(row.get(key), str) and row[key].strip()), None)
    return Message("assistant", text, fields=message_fields({"reasoning": row[key]}) if key is not None else "")


def check_completion(turns: Sequence[Message], column: str, offset: int) -> None:
    """Raises InputError where an answer is empty; the first of `turns` is number `offset` of `column`."""
    for index, turn in enumerate(turns, start=offset):
        if turn.supervised and not turn.content.strip() and "tool_calls" not in turn.more:
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


def text_field(row: Mapping[str, Any], column: str) -> str:
    """The text in `column`."""
    return checked_text(row[column], column)
