"""The data stage: every dataset of a run, encoded on disk, and `mixture.json`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from merit.base.errors import InputError
from merit.base.files import disk_errors
from merit.base.progress import SILENT, Progress
from merit.base.record import fingerprint
from merit.config.run import RunConfig
from merit.data.encode import Encoder, Look
from merit.data.example import Example
from merit.data.image import BadImage, ImageChecker
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.data.reading import DatasetReader, Read, Selection, chosen_rows, is_held_out, select
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
    summaries = {reader.name: None if again else _stored(run, reader, depends[reader.name]) for reader in readers}
    todo = [reader for reader in readers if summaries[reader.name] is None]
    with progress.bar("data", total=2.0 * len(todo)) as bar:
        selections: list[Selection] = []
        for index, reader in enumerate(todo):
            selections.append(select(reader, _refusing(reader), _shown(bar, index, reader.name)))
        with _all_or_nothing() as written:
            for index, (reader, selection) in enumerate(zip(todo, selections, strict=True), start=len(todo)):
                final = run.data(reader.name)
                path = final.with_name(f"{final.name}.new.part") if final.exists() else final
                written[path] = final
                summaries[reader.name] = _write(
                    path, reader, selection, encoder, config, depends[reader.name], _shown(bar, index, reader.name)
                )
    done = [_named(summary, reader) for reader in readers if (summary := summaries[reader.name]) is not None]
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
    path: Path,
    reader: DatasetReader,
    selection: Selection,
    encoder: Encoder,
    config: RunConfig,
    depends: str,
    on_progress: Callable[[float], None],
) -> DatasetSummary:
    tally = Tally()

    def summary() -> DatasetSummary:
        if (problem := tally.problem(reader, selection, encoder.max_length)) is not None:
            raise problem
        return tally.summary(reader, selection, encoder)

    rows = encoded_rows(
        reader,
        selection,
        encoder,
        tally,
        held_out_fraction=config.held_out_fraction,
        on_error=_refusing(reader),
        on_progress=on_progress,
    )
    write_store(path, rows, depends=depends, summary=summary, images=encoder.image_tokens is not None)
    if left_out := tally.bad_images + selection.bad_images:
        log.warning("%s: %d examples are left out for an image that cannot be used", reader.name, left_out)
    if selection.unanswered:
        log.warning("%s: %d entries come without an answer; they are left out", reader.name, selection.unanswered)
    if tally.dropped:
        log.warning("%s: %d examples have no supervised token left; they are left out", reader.name, tally.dropped)
    stored = EncodedDataset.open(path).summary
    if stored is None:  # written a moment ago
        raise InputError("was changed by another process", file=path)
    return stored


def _depends(reader: DatasetReader, config: RunConfig, encoder: Encoder) -> str:
    # Not the weight, which only planning uses, nor the path, since a moved file has the same content.
    settings = reader.config.model_dump(mode="json", exclude={"weight", "path"})
    share = None if reader.unseen else config.held_out_fraction
    return fingerprint(VERSION, reader.source.fingerprint(), settings, share, encoder.fingerprint, encoder.max_length)


def _stored(run: RunDir, reader: DatasetReader, depends: str) -> DatasetSummary | None:
    try:
        stored = EncodedDataset.open(run.data(reader.name))
    except InputError:
        return None
    return stored.summary if stored.depends == depends and stored.intact() else None


def _named(summary: DatasetSummary, reader: DatasetReader) -> DatasetSummary:
    now = {"name": reader.name, "source": reader.config.path, "weight": reader.config.weight}
    return summary.model_copy(update=now)


def _shown(bar: Any, index: int, name: str) -> Callable[[float], None]:
    return lambda done: bar.update(index + done, note=name)


def _refusing(reader: DatasetReader) -> Callable[[InputError], None]:
    """Raises what is wrong with a row, bad images apart where they are to be skipped."""

    def tell(error: InputError) -> None:
        if not isinstance(error, BadImage) or reader.config.bad_images == "refuse":
            raise error
        log.info("left out: %s", error)

    return tell


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


class Tally:
    """Counts while rows stream by; memory is 4 bytes a row."""

    def __init__(self) -> None:
        self.lengths = array("i")
        self.truncated = 0
        self.dropped = 0
        self.first_dropped = 0  # its line
        self.answers = False
        self.images = 0
        self.bad_images = 0  # examples
        self.seen: dict[str, tuple[int, int]] = {}  # what is done to images → how many, the first one's line
        self.counts = {False: [0, 0, 0], True: [0, 0, 0]}  # held out? → examples, tokens, supervised tokens
        self._content = 0
        self._shown: list[tuple[str, Example]] = []

    def add(self, stored: StoredExample, example: Example) -> None:
        length = len(stored.input_ids)
        self.lengths.append(length)
        self.truncated += stored.truncated
        self.images += len(stored.pictures)
        self.answers |= stored.reference is not None
        for index, value in enumerate((1, length, stored.supervised)):
            self.counts[stored.held_out][index] += value
        self._content = (self._content + _digest(stored)) % 2**128
        # Those with the smallest content hash: the same ones whatever the order of the file.
        self._shown = sorted([*self._shown, (stored.id, example)], key=lambda item: item[0])[:_RENDERED]

    def see(self, read: Read, look: Look) -> None:
        """The images of a row, before its example is encoded."""
        for ref, (_, facts) in zip(_example(read).images, look, strict=True):
            for note in (*facts.notes, *(["misnamed"] if facts.misnamed(ref.name) else [])):
                count, first = self.seen.get(note, (0, read.number))
                self.seen[note] = (count + 1, first)

    def drop(self, number: int) -> None:
        """Row `number` has no supervised token."""
        self.first_dropped = self.first_dropped or number
        self.dropped += 1

    @property
    def fingerprint(self) -> str:
        """Of the encoded rows as a set: their order in the source does not matter."""
        return f"{self._content:032x}"[:16]

    def problem(self, reader: DatasetReader, selection: Selection, max_length: int) -> InputError | None:
        """What is wrong with the dataset as a whole."""
        place = reader.source.place
        train, held_out = self.counts[False][0], self.counts[True][0]
        if selection.kept == 0:
            why = "its generator gives no answers to learn from" if selection.unanswered else "no usable example"
            why = "not one example whose images can be used" if selection.bad_images else why
            return InputError(why, file=place, field=reader.at)
        if train + held_out == 0 and self.bad_images:
            return InputError("not one example whose images can be used", file=place, field=reader.at)
        if train + held_out == 0:
            message = (
                f"no example keeps a supervised token within {max_length} tokens; raise it, or shorten the prompts"
            )
            return InputError(message, file=place, line=self.first_dropped, field="train.max_length")
        if not reader.unseen and min(train, held_out) == 0:
            part = "train on" if train == 0 else "hold out"
            message = (
                f"none of its {train + held_out} examples falls to the rows to {part}; add rows, or change the share"
            )
            return InputError(message, file=place, field="held_out_fraction")
        return None

    def summary(self, reader: DatasetReader, selection: Selection, encoder: Encoder) -> DatasetSummary:
        """The dataset's line of `mixture.json`."""
        lengths = np.frombuffer(self.lengths, np.int32) if self.lengths else np.zeros(1, np.int32)
        quantiles = np.quantile(lengths, _QUANTILES, method="higher")
        train, held_out = (
            SplitCounts(examples=count[0], tokens=count[1], supervised_tokens=count[2])
            for count in (self.counts[False], self.counts[True])
        )
        scoring = "verifier" if reader.source.scores else "reference" if self.answers else None
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
            images=self.images,
            scoring=scoring,
            fingerprint=self.fingerprint,
            rendered=[encoder.render(example) for _, example in self._shown],
        )


def encoded_rows(
    reader: DatasetReader,
    selection: Selection,
    encoder: Encoder,
    tally: Tally,
    *,
    held_out_fraction: float,
    on_error: Callable[[InputError], None],
    on_progress: Callable[[float], None],
) -> Iterator[StoredExample]:
    """The second reading: encodes what was selected. Rows without a supervised token are dropped, and counted.

    An unseen dataset is held out whole.

    Raises:
        InputError: the source changed; also whatever `on_error` raises for a row that cannot be encoded.
    """
    rows = chosen_rows(reader, selection)
    checker = ImageChecker(reader.config.max_pixels, cache_folder() / "images.sqlite")
    while chunk := list(islice(rows, _CHUNK)):
        placed = []
        looks = encoder.look([_example(read) for read in chunk], checker)
        for read, look in zip(chunk, looks, strict=True):
            try:
                if isinstance(look, BadImage):
                    raise look
                placed.append((read, encoder.layout(_example(read), look)))
                tally.see(read, look)
            except InputError as error:
                tally.bad_images += isinstance(error, BadImage)
                on_error(type(error)(error.message, file=reader.source.place, line=read.number, field=error.field))
        layouts = [layout for _, layout in placed]
        for (read, layout), (encoded, prompt_ids) in zip(placed, encoder.encode_layouts(layouts), strict=True):
            if encoded.supervised == 0:
                tally.drop(read.number)
                continue
            example = _example(read)
            stored = StoredExample.of(
                example.id,
                encoded,
                held_out=reader.unseen or is_held_out(example.id, held_out_fraction),
                prompt_ids=prompt_ids,
                prompt_text=layout.prompt,
                reference=example.reference,
                verifier=example.verifier,
            )
            tally.add(stored, example)
            yield stored
        on_progress(chunk[-1].done)


def _example(read: Read) -> Example:
    if read.example is None:  # chosen rows have one
        raise TypeError("a chosen row without an example")
    return read.example


def _digest(stored: StoredExample) -> int:
    digest = hashlib.sha256(f"{stored.id}{stored.held_out}{stored.reference}{stored.verifier}".encode())
    for numbers in (stored.input_ids, stored.labels, stored.prompt_ids):
        digest.update(np.asarray(numbers, "<i4").tobytes())
        digest.update(b";")
    for picture in stored.pictures:
        digest.update(hashlib.sha256(picture).digest())
    return int.from_bytes(digest.digest()[:16], "big")
