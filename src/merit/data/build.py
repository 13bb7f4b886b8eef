"""The data stage: every dataset of a run, encoded on disk, and `mixture.json`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from merit.base.errors import InputError
from merit.base.files import disk_errors, write_text
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.run import RunConfig
from merit.data.encode import Encoder, Layout, loses_reasoning
from merit.data.example import Encoded, Example, Row
from merit.data.format import format_marks
from merit.data.image import BadImage, ImageChecker, Look
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.data.reading import DatasetReader, Selection, chosen_rows, is_skipped, select
from merit.data.source import FileParts
from merit.data.store import VERSION, EncodedDataset, StoredExample, write_store
from merit.models.source import cache_folder
from merit.run.layout import RunDir

log = logging.getLogger(__name__)


def build_mixture(
    config: RunConfig,
    base: Path,
    run: RunDir,
    tokenizer: Any,
    progress: Progress = SILENT,
    *,
    again: bool = False,
) -> Mixture:
    """Reads, splits and encodes every dataset of `mixture` and `evaluate.unseen`; writes `mixture.json` last.

    A dataset whose stored file depends on the same things as now is kept, unless everything is wanted `again`. All
    sources are read to their end before anything is written. When an input turns out to be bad later, what this call
    has written is removed, and what was there before stays.

    Args:
        base: the configuration's folder, which relative paths start from.
        tokenizer: θ0's, with the chat template that the run uses.

    Raises:
        InputError: the first thing wrong with any dataset; names file, line and field.
        StageError: the disk is full.
    """
    encoder = Encoder(tokenizer, config.train.max_length)
    readers = open_readers(config, base)
    depends = {reader.name: _depends(reader, config, encoder) for reader in readers}
    summaries = {
        reader.name: None if again else _stored(run, reader, depends[reader.name], encoder.limit) for reader in readers
    }
    todo = [reader for reader in readers if summaries[reader.name] is None]
    with progress.bar("data", total=2.0 * len(todo)) as bar:
        selections: list[Selection] = []
        tellers = [_Teller(reader) for reader in todo]
        for index, (reader, tell) in enumerate(zip(todo, tellers, strict=True)):
            selections.append(select(reader, tell, _shown(bar, index, reader.name)))
        with _all_or_nothing() as written:
            work = zip(todo, selections, tellers, strict=True)
            for index, (reader, selection, tell) in enumerate(work, start=len(todo)):
                final = run.data(reader.name)
                # Beside the list of skipped rows nothing is in place before the list is.
                aside = final.exists() or reader.config.on_bad_row == "skip"
                path = final.with_name(f"{final.name}.new.part") if aside else final
                written[path] = final
                encoding = Encoding(reader, selection, encoder, config.held_out_fraction)
                show = _shown(bar, index, reader.name)
                summaries[reader.name] = _write(path, encoding, depends[reader.name], tell, show)
                if tell.skipped or run.skipped_rows(reader.name).exists():
                    told = run.skipped_rows(reader.name)
                    written[tell.write(told.with_name(f"{told.name}.new.part"))] = told
                    written[path] = written.pop(path)
    done = [
        summary.model_copy(update={"name": reader.name, "source": reader.config.path, "weight": reader.config.weight})
        for reader in readers
        if (summary := summaries[reader.name]) is not None
    ]
    mixture = Mixture(
        datasets=done[: len(config.mixture)],
        unseen=done[len(config.mixture) :],
        max_length=encoder.max_length,
        tokenizer_fingerprint=encoder.fingerprint,
    )
    mixture.save(run.mixture)
    return mixture


def open_readers(config: RunConfig, base: Path) -> list[DatasetReader]:
    """Readers of the mixture's datasets, then of the unseen ones.

    Raises:
        InputError: the first source that cannot be opened.
    """
    readers = [DatasetReader.open(name, item, base) for name, item in config.mixture.items()]
    return readers + [
        DatasetReader.open(name, item, base, unseen=True) for name, item in config.evaluate.unseen.items()
    ]


def source_fingerprints(config: RunConfig, base: Path) -> dict[str, str]:
    """What every dataset's source holds now, by name; reads every file once to hash it.

    Raises:
        InputError: the first source that cannot be opened.
    """
    return {reader.name: reader.source.fingerprint() for reader in open_readers(config, base)}


def _write(
    path: Path, encoding: Encoding, depends: str, tell: _Teller, on_progress: Callable[[float], None]
) -> DatasetSummary:
    reader, selection, encoder = encoding.reader, encoding.selection, encoding.encoder
    found: list[DatasetSummary] = []

    def summary() -> DatasetSummary:
        if (problem := encoding.problem()) is not None:
            raise problem
        found.append(encoding.summary())
        return found[0]

    skipped = len(tell.skipped)
    rows = encoding.rows(tell, on_progress)
    try:
        write_store(path, rows, depends=depends, summary=summary, images=encoder.image_tokens is not None)
    except InputError:
        if (again := encoding.again()) is None:
            raise
        del tell.skipped[skipped:]
        return _write(path, again, depends, tell, on_progress)
    if left_out := encoding.bad_images + selection.bad_images:
        log.warning("%s: left out %d examples whose images cannot be used", reader.name, left_out)
    if tell.skipped:
        log.warning("%s: left out %d bad rows; data/ lists them", reader.name, len(tell.skipped))
    if selection.unanswered:
        log.warning("%s: left out %d entries without an answer", reader.name, selection.unanswered)
    if encoding.dropped:
        log.warning("%s: left out %d examples without a supervised token", reader.name, encoding.dropped)
    return found[0]


def _depends(reader: DatasetReader, config: RunConfig, encoder: Encoder) -> str:
    # Not the weight, which only planning uses, nor the path, since a moved file has the same content.
    settings = {key: value for key, value in reader.config.mark.items() if key not in ("weight", "path")}
    share = None if reader.unseen else config.held_out_fraction
    parts = (VERSION, reader.source.fingerprint(), settings, share, encoder.fingerprint, encoder.max_length)
    return fingerprint(*parts, *format_marks([reader.config.format]))


def _stored(run: RunDir, reader: DatasetReader, depends: str, limit: int) -> DatasetSummary | None:
    try:
        stored = EncodedDataset.open(run.data(reader.name))
    except InputError:
        return None
    # merit 0.1.0 did not know the limit of a model's positions.
    if stored.depends != depends or not stored.intact() or stored.summary is None or stored.summary.longest > limit:
        return None
    return stored.summary


def _shown(bar: Any, index: int, name: str) -> Callable[[float], None]:
    return lambda done: bar.update(index + done, note=name)


class _Teller:
    """Raises what is wrong with a row; keeps it where the dataset's configuration says that such rows are skipped."""

    def __init__(self, reader: DatasetReader) -> None:
        self.config, self.source = reader.config, reader.source
        self.skipped: list[InputError] = []

    def __call__(self, error: InputError) -> None:
        if not is_skipped(error, self.config):
            raise error
        if not isinstance(error, BadImage):
            self.skipped.append(error)
        log.info("left out: %s", error)

    def write(self, path: Path) -> Path:
        """Writes the skipped rows to `path`: one JSON object a line, in the order of the source."""
        rows = sorted(self.skipped, key=lambda error: (str(error.file), error.line or 0))
        parts = isinstance(self.source, FileParts)
        lines = [
            json.dumps(
                ({"file": Path(str(row.file)).name} if parts else {})
                | {"line": row.line, "field": row.field, "problem": row.message}
            )
            for row in rows
        ]
        write_text(path, "".join(f"{line}\n" for line in lines))
        return path


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[dict[Path, Path]]:
    """Yields an empty dict of written file → final file. In the end each takes its final place; a bad input removes
    them, and their folder when it is left empty. Without bad input (a full disk) what is in place stays for a rerun."""
    written: dict[Path, Path] = {}
    try:
        yield written
        for path, final in written.items():
            with disk_errors(final):
                path.replace(final)
    except InputError:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in {path.parent for path in written}:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


_CHUNK = 64  # rows tokenized in one call: enough to use all cores
_RENDERED = 3
_QUANTILES = (0.5, 0.9, 1.0)


class Encoding:
    """The second reading of one dataset, which encodes the chosen rows and counts them. Memory is 4 bytes per row.

    An unseen dataset is held out whole.
    """

    def __init__(self, reader: DatasetReader, selection: Selection, encoder: Encoder, held_out_fraction: float) -> None:
        self.reader, self.selection, self.encoder = reader, selection, encoder
        self.held_out = selection.hold_out(held_out_fraction)
        self.lengths = array("i")
        self.truncated = 0
        self.dropped = 0
        self.first_dropped = 0  # its line
        self.answers = False
        self.lost_reasoning = 0  # examples of which the template left reasoning out
        self.special = 0  # examples whose text spells out a special token
        self.first_special: tuple[int, str] | None = None  # the first one's line, and its token
        self.images = 0
        self.bad_images = 0  # examples
        self.bad_rows = 0
        self.seen: dict[str, tuple[int, int]] = {}  # what is done to images → how many, the first one's line
        self.counts = {False: [0, 0, 0], True: [0, 0, 0]}  # held out? → examples, tokens, supervised tokens
        self._whole = False  # whether all rows are encoded
        self._draws: list[int] = []  # the smallest and the largest of the encoded rows
        self._content = 0  # sum of the rows' digests: the order of the source does not matter
        self._shown: list[tuple[str, Example]] = []

    def rows(
        self, on_error: Callable[[InputError], None], on_progress: Callable[[float], None]
    ) -> Iterator[StoredExample]:
        """The encoded rows. Those without a supervised token are dropped, and counted.

        Raises:
            InputError: the source changed; also whatever `on_error` raises for a row that cannot be encoded.
        """
        rows = chosen_rows(self.reader, self.selection)
        checker = ImageChecker(self.reader.config.max_pixels, cache_folder() / "images.sqlite")
        while chunk := list(islice(rows, _CHUNK)):
            placed: list[tuple[Row, Layout]] = []
            for row, look in zip(chunk, checker.look([row.value.images for row in chunk]), strict=True):
                try:
                    if isinstance(look, BadImage):
                        raise look
                    placed.append((row, self.encoder.layout(row.value, look)))
                    self._see(row, look)
                except InputError as error:
                    self.bad_images += isinstance(error, BadImage)
                    self.bad_rows += not isinstance(error, BadImage)
                    place = row.place or self.reader.source.place
                    on_error(type(error)(error.message, file=place, line=row.number, field=error.field))
            encoded = self.encoder.encode_layouts([layout for _, layout in placed])
            for (row, layout), (item, prompt_ids) in zip(placed, encoded, strict=True):
                self.lost_reasoning += loses_reasoning(row.value, layout.text)
                if (token := self.encoder.special_text(row.value)) is not None:
                    self.special += 1
                    self.first_special = self.first_special or (row.number, token)
                if item.supervised:
                    yield self._stored(row.value, item, prompt_ids, layout.prompt)
                else:
                    self.first_dropped = self.first_dropped or row.number
                    self.dropped += 1
            on_progress(chunk[-1].done)
        self._whole = True

    def _stored(self, example: Example, encoded: Encoded, prompt_ids: list[int], prompt: str) -> StoredExample:
        drawn = self.held_out.draw(example)
        self._draws = [min([drawn, *self._draws]), max([drawn, *self._draws])]
        held_out = self.reader.unseen or drawn < self.held_out.cut
        stored = StoredExample(example.id, encoded, held_out, prompt_ids, prompt, example.reference, example.verifier)
        length = len(encoded.input_ids)
        self.lengths.append(length)
        self.truncated += encoded.truncated
        self.images += len(encoded.images)
        self.answers |= example.reference is not None
        for index, value in enumerate((1, length, encoded.supervised)):
            self.counts[held_out][index] += value
        self._content = (self._content + _digest(stored)) % 2**128
        # Those with the smallest content hash: the same ones whatever the order of the file.
        self._shown = sorted([*self._shown, (stored.id, example)], key=lambda item: item[0])[:_RENDERED]
        return stored

    def _see(self, row: Row, look: Look) -> None:
        """Counts what is done to the images of a row."""
        for ref, (_, facts) in zip(row.value.images, look, strict=True):
            for note in (*facts.notes, *(["misnamed"] if facts.misnamed(ref.name) else [])):
                count, first = self.seen.get(note, (0, row.number))
                self.seen[note] = (count + 1, first)

    def again(self) -> Encoding | None:
        """The same with another cut, where of the rows to hold out, or of the others, all have been dropped. None where
        not all rows are encoded, nothing is wrong, or fewer than two prompts are left."""
        train, held_out = self.counts[False][0], self.counts[True][0]
        if not self._whole or self.reader.unseen or min(train, held_out) > 0 or len(set(self._draws)) < 2:
            return None
        other = Encoding(self.reader, self.selection, self.encoder, 0.0)
        low, high = self._draws
        other.held_out = replace(self.held_out, cut=high if train == 0 else low + 1)
        return other

    def problem(self) -> InputError | None:
        """What is wrong with the dataset as a whole."""
        message, field, line = "", self.reader.at, None
        train, held_out = self.counts[False][0], self.counts[True][0]
        if self.selection.kept == 0 and self.selection.unanswered and not self.selection.bad_images:
            message = "its generator gives no answers to learn from"
        elif train + held_out == 0 and (left_out := self.bad_rows + self.selection.bad_rows):
            message = f"not one usable row: {left_out:,} are bad; `on_bad_row: refuse` tells why"
        elif self.selection.kept == 0 and not self.selection.bad_images:
            message = "no usable example"
        elif train + held_out == 0 and (self.bad_images or self.selection.kept == 0):
            message = "not one example whose images can be used"
        elif train + held_out == 0:
            if self.encoder.limit < self.encoder.max_length:
                within, advice, field = self.encoder.limit_name, "shorten the prompts", "model"
            else:
                within, advice, field = (
                    f"{self.encoder.limit} tokens",
                    "raise it, or shorten the prompts",
                    "train.max_length",
                )
            message = f"no example keeps a supervised token within {within}; {advice}"
            line = self.first_dropped
        elif not self.reader.unseen and min(train, held_out) == 0:
            total, part = train + held_out, "train on" if train == 0 else "hold out"
            message = f"none of its {total} examples is left to {part}; add rows, or change the share"
            field = "held_out_fraction"
        return InputError(message, file=self.reader.source.place, line=line, field=field) if message else None

    def summary(self) -> DatasetSummary:
        """The dataset's record in `mixture.json`."""
        lengths = np.frombuffer(self.lengths, np.int32) if self.lengths else np.zeros(1, np.int32)
        quantiles = np.quantile(lengths, _QUANTILES, method="higher")
        train, held_out = (
            SplitCounts(examples=count[0], tokens=count[1], supervised_tokens=count[2])
            for count in (self.counts[False], self.counts[True])
        )
        reader, selection = self.reader, self.selection
        return DatasetSummary(
            name=reader.name,
            source=reader.config.path,
            format=reader.format.name,
            weight=reader.config.weight,
            train=train,
            held_out=held_out,
            length_quantiles={str(q): int(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
            truncated=self.truncated,
            duplicates=selection.duplicates,
            skipped=selection.skipped,
            dropped=self.dropped + selection.unanswered,
            bad_images=self.bad_images + selection.bad_images,
            bad_rows=self.bad_rows + selection.bad_rows,
            images=self.images,
            scoring="verifier" if reader.source.scores else "reference" if self.answers else None,
            fingerprint=f"{self._content:032x}"[:16],
            rendered=[self.encoder.render(example) for _, example in self._shown],
        )


def _digest(stored: StoredExample) -> int:
    digest = hashlib.sha256(f"{stored.id}{stored.held_out}{stored.reference}{stored.verifier}".encode())
    for numbers in (stored.encoded.input_ids, stored.encoded.labels, stored.prompt_ids):
        digest.update(np.asarray(numbers, "<i4").tobytes())
        digest.update(b";")
    for image in stored.encoded.images:
        digest.update(hashlib.sha256(image).digest())
    return int.from_bytes(digest.digest()[:16], "big")
