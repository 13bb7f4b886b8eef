"""From a dataset's configuration to its examples, and which of them are used. `build` and `check` both read here.

A dataset is read twice: first only to hash contents, find what is wrong, and choose; then to encode what was chosen.
Between the two only 17 bytes a row are kept, so memory does not hold rows, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError, did_you_mean
from merit.config.sections import DatasetConfig
from merit.data.example import Example, Row
from merit.data.files import FileSource, UnreadableRest
from merit.data.format import RowFormat, choose_format
from merit.data.image import BadImage
from merit.data.image_fields import NO_FOLDER, ImageSource
from merit.data.source import FileParts, HubSource, Source, cache_folders, open_source

_PROBED = 20
# Of a `where` that no row fits: rows that are looked at, values that are named, and characters of each.
_LISTED, _MOST, _SHOWN = 10_000, 12, 60


@dataclass(frozen=True)
class DatasetReader:
    """One dataset as a stream of examples."""

    name: str
    config: DatasetConfig
    source: Source
    unseen: bool = False
    images: ImageSource = NO_FOLDER

    @classmethod
    def open(cls, name: str, config: DatasetConfig, base: Path, *, unseen: bool = False) -> DatasetReader:
        """Opens the source.

        Raises:
            InputError: see `open_source`.
        """
        at = field_of(name, unseen=unseen)
        source = open_source(config, base, at)
        folder = source.path.parent if isinstance(source, FileSource | FileParts) else None
        if config.image_folder is not None:
            folder = base / Path(config.image_folder).expanduser()
            if not folder.is_dir():
                raise InputError("no such folder", file=config.image_folder, field=f"{at}.image_folder")
        caches = cache_folders() if isinstance(source, HubSource) else ()
        return cls(name, config, source, unseen, ImageSource(folder, config.image_urls, caches))

    @property
    def at(self) -> str:
        """The dataset's field in the configuration."""
        return field_of(self.name, unseen=self.unseen)

    @cached_property
    def format(self) -> RowFormat:
        """Named, or detected from the first rows.

        Raises:
            InputError: no row at all, or none that `where` asks for; no format that fits, a mapped column that is
                missing.
        """
        rows = self._rows()
        first = list(islice(rows, _PROBED))
        if not first:
            raise self._without_rows()
        values = [row.value for row in first if row.error is None]
        if not values and all(row.error is not None and is_skipped(row.error, self.config) for row in first):
            values = [row.value for row in islice((row for row in rows if row.error is None), _PROBED)]
        if not values:
            raise first[0].error or InputError("no readable row", file=self.source.place)
        config = self.config
        if self.source.scores and config.format is None:
            # A generator's own shape; detection would stumble over answers that are null.
            config = config.model_copy(update={"format": "qa"})
        return choose_format(config, values, self.source.place, self.at, self.images)

    def read(self) -> Iterator[Row]:
        """All rows, each with its `Example`, with what is wrong with it, or with neither where a generator gives no
        answer to learn from.

        Raises:
            InputError: the source cannot be read on.
        """
        layout = self.format
        for row in self._rows():
            if row.error is not None:
                yield row
            elif self.source.scores and row.value["answer"] is None:
                yield replace(row, value=None)
            else:
                try:
                    yield replace(row, value=layout.parse(row.value, row.number, row.place))
                except InputError as error:
                    yield replace(row, value=None, error=error)

    def _rows(self) -> Iterator[Row]:
        """The source's rows that `where` asks for, and those that cannot be read, which may be among them."""
        wanted = {column: str(value) for column, value in self.config.where.items()}
        for row in self.source.rows():
            known = row.error is None and isinstance(row.value, dict)
            if not known or all(str(row.value.get(column)) == value for column, value in wanted.items()):
                yield row

    def _without_rows(self) -> InputError:
        """Why there is none: the source is empty, or a column of `where` never has the value."""
        place, rows = self.source.place, [row.value for row in islice(self.source.rows(), _LISTED)]
        if not rows:
            return InputError("empty: no rows", file=place)
        for column, wanted in self.config.where.items():
            found = list(dict.fromkeys(str(row[column])[:_SHOWN] for row in rows if column in row))
            if not found:
                near = did_you_mean(column, dict.fromkeys(str(key) for row in rows for key in row))
                return InputError(f"no row has a column {column!r}{near}", file=place, field=f"{self.at}.where")
            if str(wanted) not in found:
                near = did_you_mean(str(wanted), found, otherwise=f"; there are {', '.join(found[:_MOST])}")
                message = f"no row has `{column}: {wanted}`{near}"
                return InputError(message, file=place, field=f"{self.at}.where.{column}")
        return InputError("no row has all of these values", file=place, field=f"{self.at}.where")


def is_skipped(error: InputError, config: DatasetConfig) -> bool:
    """Whether the row with this mistake is left out of a run, instead of ending it."""
    if isinstance(error, UnreadableRest):
        return False
    return config.bad_images == "skip" if isinstance(error, BadImage) else config.on_bad_row == "skip"


def field_of(name: str, *, unseen: bool) -> str:
    """Where the configuration has the dataset `name`."""
    return f"evaluate.unseen.{name}" if unseen else f"mixture.{name}"


@dataclass(frozen=True)
class Selection:
    """Which rows are used. `hashes`, `prompts` and `keep` go by the row's place in the stream.

    `prompts` are the draws of the rows' prompts; where all rows have one prompt, of the rows themselves (`by_row`).
    """

    hashes: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    by_row: bool
    keep: NDArray[np.bool_]
    rows: int  # rows read, bad ones included
    duplicates: int
    skipped: int  # beyond max_examples
    unanswered: int  # the source itself knows no answer
    bad_images: int = 0  # rows whose images cannot be used
    bad_rows: int = 0  # rows with something else wrong

    @property
    def kept(self) -> int:
        return int(self.keep.sum())

    def hold_out(self, fraction: float) -> HoldOut:
        """Keeps about `fraction` of the prompts out of training, at least one of them, and never all."""
        draws, cut = self.prompts[self.keep], int(fraction * 2.0**64)
        if len(draws):
            low, high = int(draws.min()), int(draws.max())
            cut = max(low + 1, min(cut, high) if low < high else cut)
        return HoldOut(cut, self.by_row)


@dataclass(frozen=True)
class HoldOut:
    """Which examples are kept out of training: those whose draw is below `cut`."""

    cut: int
    by_row: bool = False

    def draw(self, example: Example) -> int:
        """The example's."""
        return draw(example.id if self.by_row else example.prompt_key)


def select(
    reader: DatasetReader, on_error: Callable[[InputError], None], on_progress: Callable[[float], None]
) -> Selection:
    """The first reading: drops repeated contents and, beyond `max_examples`, keeps the smallest content hashes.

    Contents are told apart by 64 bits of SHA-256: among ten million rows one is mistaken for another with a chance of
    three in a million, and is then dropped.

    Args:
        on_error: gets the error of every bad row; a run raises it, `merit check` collects it.

    Raises:
        InputError: the source cannot be read; also whatever `on_error` raises.
    """
    hashes, prompts, good = array("Q"), array("Q"), array("b")
    own, asked = array("Q"), set[int]()  # the draws of the rows themselves, until two prompts differ
    unanswered = bad_images = bad_rows = 0
    for count, row in enumerate(reader.read()):
        if row.error is not None:
            on_error(row.error)
            bad_images += isinstance(row.error, BadImage)
            bad_rows += not isinstance(row.error, BadImage)
        unanswered += row.value is None and row.error is None
        hashes.append(_key(row.value.id) if row.value is not None else 0)
        prompts.append(draw(row.value.prompt_key) if row.value is not None else 0)
        if len(asked) < 2:
            own.append(draw(row.value.id) if row.value is not None else 0)
            asked |= {prompts[-1]} if row.value is not None else set()
        good.append(row.value is not None)
        if count % 256 == 0:
            on_progress(row.done)
    by_row = len(asked) < 2
    keys, draws = (
        np.frombuffer(part, np.uint64) if part else np.zeros(0, np.uint64)
        for part in (hashes, own if by_row else prompts)
    )
    usable = np.flatnonzero(np.frombuffer(good, np.int8)) if good else np.zeros(0, np.int64)
    # np.unique sorts, and gives the first place of each content.
    _, first = np.unique(keys[usable], return_index=True)
    chosen = usable[first]
    limit = reader.config.max_examples
    skipped = max(0, len(chosen) - limit) if limit is not None else 0
    keep = np.zeros(len(keys), np.bool_)
    keep[chosen[: len(chosen) - skipped]] = True
    duplicates = len(usable) - len(chosen)
    return Selection(
        keys, draws, by_row, keep, len(keys), duplicates, skipped, unanswered, bad_images=bad_images, bad_rows=bad_rows
    )


def chosen_rows(reader: DatasetReader, selection: Selection) -> Iterator[Row]:
    """The second reading: the kept rows with their examples.

    Raises:
        InputError: the source changed since the first reading.
    """
    changed = InputError("the source changed while it was read; run again", file=reader.source.place)
    place = -1
    for place, row in enumerate(reader.read()):
        if place >= selection.rows:
            raise changed
        if selection.keep[place]:
            if row.value is None or _key(row.value.id) != int(selection.hashes[place]):
                raise changed
            yield row
    if place + 1 != selection.rows:
        raise changed


def draw(key: str) -> int:
    """A number of 64 bits that decides whether examples with this key are kept out of training: a hash of its own, so
    that neither `max_examples` nor a weight, which go by the content hash's order, favours one part."""
    return int.from_bytes(hashlib.sha256(b"held-out:" + key.encode()).digest()[:8], "big")


def _key(id: str) -> int:
    return int(id[:16], 16)
