"""The chosen rows of a dataset, encoded, and what there is to say about them. Shared by `build` and `check`."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from merit.data.encode import Encoder
from merit.data.example import Example
from merit.data.image import BadImage
from merit.data.image_check import ImageChecker
from merit.data.image_layout import Look
from merit.data.mixture import DatasetSummary, SplitCounts
from merit.data.reading import DatasetReader, Read, Selection, chosen_rows, is_held_out
from merit.data.stored import StoredExample
from merit.errors import InputError
from merit.models.source import cache_folder

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
