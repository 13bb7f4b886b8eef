"""The data stage: every dataset of a run, encoded on disk, and `mixture.json`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from merit.config.root import RunConfig
from merit.data.encode import Encoder
from merit.data.encoding import Tally, encoded_rows
from merit.data.image import BadImage
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.reading import DatasetReader, Selection, select
from merit.data.store import VERSION, EncodedDataset, write_store
from merit.errors import InputError
from merit.io import disk_errors
from merit.logging import get_logger
from merit.progress import SILENT, Progress
from merit.run.fingerprint import fingerprint
from merit.run.layout import RunDir

log = get_logger(__name__)


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
