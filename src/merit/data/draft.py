"""A configuration while `merit init` collects it: its datasets, other settings, and what its reader should be told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.reading import DatasetReader
from merit.run.layout import relative

# What YAML or people could read as something else than a name.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}


@dataclass(frozen=True)
class Dataset:
    """One dataset to write.

    Attributes:
        label: what its name is made of.
        path: relative to `base`, or a Hub id or a generator.
        base: the folder that `path` is relative to; None: `path` is no file.
        fields: its other fields, as the configuration has them.
        unseen: whether it is only evaluated.
        remark: where it comes from and what is guessed, for the comment.
        size: bytes of its files; None if nobody knows.
        kind: a word that tells it from another dataset of the same label.
    """

    label: str
    path: str
    base: Path | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    unseen: bool = False
    remark: str = ""
    size: int | None = None
    kind: str = ""

    @property
    def config(self) -> DatasetConfig:
        """The dataset as the configuration will have it.

        Raises:
            InputError: a field has a value that it cannot have.
        """
        try:
            return DatasetConfig.model_validate({"path": self.path, **self.fields})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(str(first["msg"]), file=self.path, field=field) from None


@dataclass
class Draft:
    """What is collected, in order.

    Attributes:
        home: the folder of the configuration.
        trained: lines of `mixture`; a dataset that cannot be used is a comment.
        unseen: lines of `evaluate.unseen`.
        count: datasets that can be trained on.
        size: bytes of their files; None if nobody knows.
        problems: why datasets are left out.
        notes: what else the user should be told.
        settings: `section.field` → value, and where it is from.
        origin: comments for the top: whose configuration it was made of, and what is not carried.
    """

    home: Path
    trained: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    count: int = 0
    size: int | None = 0
    problems: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    origin: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def add(self, item: Dataset, look: Callable[[str, Dataset], str] | None = None) -> None:
        """Adds a dataset; if its first row cannot be read, a comment that says why.

        Args:
            look: (name, dataset) → what to say of it; raises InputError if it cannot be used. Default: reads the first
                row of a file, and says its format.
        """
        name, lines = self._name(item), self.unseen if item.unseen else self.trained
        if not item.path.isprintable():
            # Such a name (control characters, bytes that are not UTF-8) does not survive in a text file.
            self._leave_out(
                InputError("its name holds characters that cannot be written; rename it", file=ascii(item.path)), lines
            )
            return
        path = item.path if item.base is None else relative(item.base / item.path, self.home)
        entry = f"{quoted(name)}: {flow({'path': path, **item.fields})}"
        if not entry.isprintable():
            self.leave_out(ascii(item.label), InputError("its name holds characters that cannot be written"))
            return
        try:
            said = (look or _first_row)(name, item)
        except InputError as error:
            self._leave_out(error, lines, entry)
            return
        self._taken.add(name)
        lines.append(f"{entry}  # {'; '.join(filter(None, [said, comment(item.remark)]))}".removesuffix("  # "))
        if not item.unseen:
            self.count += 1
            self.size = None if self.size is None or item.size is None else self.size + item.size

    def leave_out(self, label: str, error: InputError, *, unseen: bool = False) -> None:
        """Adds a dataset that cannot be used at all, as a comment."""
        self._leave_out(error, self.unseen if unseen else self.trained, quoted(label))

    def set(self, at: str, value: Any, source: str) -> None:
        """Sets `section.field`; `source` says where the value is from."""
        self.settings[at] = (value, source)

    def _leave_out(self, error: InputError, lines: list[str], entry: str = "") -> None:
        self.problems.append(error)
        lines.append(f"# {entry}  # left out: {error}" if entry else f"# left out: {error}")

    def _name(self, item: Dataset) -> str:
        name = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in item.label)[:100]
        name = name.strip(". ") or "data"
        kinds = [f"{name}-{item.kind}"] if item.kind else []
        candidates = [name, *kinds, *(f"{name}-{n}" for n in range(2, len(self._taken) + 3))]
        return next(candidate for candidate in candidates if candidate not in self._taken)


def _first_row(name: str, item: Dataset) -> str:
    config = item.config
    if item.base is None:
        return ""
    reader = DatasetReader.open(name, config, item.base)
    layout = reader.format
    for read in islice(reader.read(), 1):
        if read.error is not None:
            raise read.error
    return f"format: {layout.name}"


def comment(text: str) -> str:
    """`text` as a part of a comment, which ends with its line."""
    return "".join(char if char.isprintable() else " " for char in text)


def quoted(text: str) -> str:
    """`text` as a YAML scalar; JSON's quoting is YAML's, too."""
    if _PLAIN.fullmatch(text.replace(".", "a")) and text.lower() not in _WORDS and not text.startswith("."):
        return text
    return json.dumps(text, ensure_ascii=False)


def flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{quoted(str(key))}: {flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Iterable):
        return f"[{', '.join(map(flow, value))}]"
    return json.dumps(value, default=str)
