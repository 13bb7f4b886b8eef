"""Reads every dataset to its end before a model is loaded, and tells all that is wrong at once. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig
from merit.data.build import Tally, encoded_rows
from merit.data.encode import Encoder
from merit.data.image import BadImage
from merit.data.mixture import DatasetSummary
from merit.data.reading import DatasetReader, Selection, select

SHOWN = 20  # problems told of one dataset; the rest is counted
_FEW = 32  # train examples below which a dataset is called small
_FEW_HELD_OUT = 8


class DatasetCheck(Record):
    """What was found in one dataset. `summary` is there when any of its rows could be used."""

    name: str
    source: str
    unseen: bool
    rows: int  # rows read
    summary: DatasetSummary | None
    problems: list[str]  # one line each, with file, line and field
    more_problems: int  # beyond those in `problems`
    warnings: list[str]


class CheckReport(Record):
    """What `merit check` found."""

    datasets: list[DatasetCheck]
    max_length: int
    warnings: list[str]  # about the tokenizer
    general: list[str] = Field(default_factory=list)  # problems of no dataset: θ0, the tokenizer, TRL's arguments

    @property
    def ok(self) -> bool:
        """Whether a run can start."""
        return not self.general and not any(dataset.problems for dataset in self.datasets)

    @property
    def problems(self) -> list[str]:
        """All lines to show, dataset by dataset."""
        lines = list(self.general)
        for dataset in self.datasets:
            lines += dataset.problems
            if dataset.more_problems:
                lines.append(f"{dataset.name}: and {dataset.more_problems:,} more problems of this dataset")
        return lines


def check_mixture(
    config: RunConfig,
    base: Path,
    tokenizer: Any | None,
    progress: Progress = SILENT,
    general: Sequence[InputError] = (),
) -> CheckReport:
    """Reads and encodes every dataset as a run would, without stopping at anything.

    Args:
        base: the configuration's folder, which relative paths start from.
        tokenizer: θ0's, with the chat template that the run uses. Without one rows are read, but not encoded.
        general: what was found to be wrong elsewhere.

    Raises:
        InputError: the tokenizer cannot be used at all.
    """
    encoder = Encoder(tokenizer, config.train.max_length) if tokenizer is not None else None
    wanted = [(name, item, False) for name, item in config.mixture.items()]
    wanted += [(name, item, True) for name, item in config.evaluate.unseen.items()]
    checks = []
    mixed: list[NDArray[np.uint64]] = []  # content hashes of the mixture
    with progress.bar("check", total=2.0 * len(wanted)) as bar:
        for index, (name, item, unseen) in enumerate(wanted):

            def show(done: float, start: int = 2 * index, name: str = name) -> None:
                bar.update(start + done, note=name)

            found, hashes = _check(name, item, unseen, config, base, encoder, show)
            if not unseen:
                mixed.append(hashes)
            elif shared := int(np.isin(hashes, np.concatenate(mixed)).sum()):
                line = f"{shared:,} of its {len(hashes):,} examples are in the mixture, too: they are not unseen"
                found = found.model_copy(update={"warnings": [*found.warnings, line]})
            checks.append(found)
    return CheckReport(
        datasets=checks,
        max_length=config.train.max_length,
        warnings=_tokenizer_warnings(encoder) if encoder is not None else [],
        general=[str(error) for error in general],
    )


class _Problems:
    """Collects errors: the first few as lines, the rest as a count. Bad images that are skipped stand apart."""

    def __init__(self, *, skip_images: bool = False) -> None:
        self.lines: list[str] = []
        self.more = 0
        self.images: list[str] = []
        self.bad_images = 0
        self._skip_images = skip_images

    def add(self, error: InputError) -> None:
        if self._skip_images and isinstance(error, BadImage):
            self.bad_images += 1
            if len(self.images) < SHOWN:
                self.images.append(f"left out: {error}")
        elif len(self.lines) < SHOWN:
            self.lines.append(str(error))
        else:
            self.more += 1


def _check(
    name: str,
    item: DatasetConfig,
    unseen: bool,
    config: RunConfig,
    base: Path,
    encoder: Encoder | None,
    show: Callable[[float], None],
) -> tuple[DatasetCheck, NDArray[np.uint64]]:
    """What is found, and the content hashes of the rows in use."""
    problems, tally = _Problems(skip_images=item.bad_images == "skip"), Tally()
    selection: Selection | None = None
    summary: DatasetSummary | None = None
    warnings: list[str] = []
    try:
        reader = DatasetReader.open(name, item, base, unseen=unseen)
        selection = select(reader, problems.add, show)
        if encoder is not None:
            _encode(reader, selection, encoder, tally, config, problems, show)
            if tally.lengths:
                summary = tally.summary(reader, selection, encoder)
                warnings = _warnings(summary, selection, config, unseen=unseen) + _image_notes(tally)
    except InputError as error:
        problems.add(error)
    warnings = [*problems.images, *warnings]
    if more := problems.bad_images - len(problems.images):
        warnings.insert(len(problems.images), f"left out: {more:,} more examples for an image that cannot be used")
    hashes = selection.hashes[selection.keep] if selection is not None else np.zeros(0, np.uint64)
    found = DatasetCheck(
        name=name,
        source=item.path,
        unseen=unseen,
        rows=selection.rows if selection is not None else 0,
        summary=summary,
        problems=problems.lines,
        more_problems=problems.more,
        warnings=warnings,
    )
    return found, hashes


def _encode(
    reader: DatasetReader,
    selection: Selection,
    encoder: Encoder,
    tally: Tally,
    config: RunConfig,
    problems: _Problems,
    show: Callable[[float], None],
) -> None:
    """Encodes the chosen rows into nothing but the tally."""
    rows = encoded_rows(
        reader,
        selection,
        encoder,
        tally,
        held_out_fraction=config.held_out_fraction,
        on_error=problems.add,
        on_progress=lambda done: show(1 + done),
    )
    for _ in rows:
        pass
    whole = tally.problem(reader, selection, encoder.max_length)
    # Where rows are bad, that none is left says nothing new.
    if whole is not None and not problems.lines:
        problems.add(whole)


def _warnings(summary: DatasetSummary, selection: Selection, config: RunConfig, *, unseen: bool) -> list[str]:
    total = summary.train.examples + summary.held_out.examples
    lines = []
    if summary.truncated:
        share = summary.truncated / total
        lines.append(f"{summary.truncated:,} of {total:,} examples ({share:.1%}) are cut at `train.max_length`")
    if no_label := summary.dropped - selection.unanswered:
        lines.append(f"{no_label:,} examples are left out: their prompt alone fills `train.max_length`")
    if selection.unanswered:
        lines.append(f"{selection.unanswered:,} entries are left out: the generator gives no answer to them")
    if selection.duplicates:
        lines.append(f"{selection.duplicates:,} rows repeat another one and are left out")
    if not unseen and summary.train.examples < _FEW:
        lines.append(f"only {summary.train.examples} examples to train on")
    elif not unseen and summary.train.examples < config.calibration.examples:
        wanted = config.calibration.examples
        lines.append(
            f"the gradient is measured on {summary.train.examples} examples, not on {wanted}: there are no more"
        )
    if summary.held_out.examples < _FEW_HELD_OUT:
        lines.append(f"only {summary.held_out.examples} held-out examples: its results will be very uncertain")
    return lines


_DONE = {
    "animated": "are animated: only the first frame is seen",
    "turned": "are turned as their EXIF orientation says",
    "16-bit": "have 16 bits or real numbers a channel, which become 8",
    "CMYK": "are CMYK, and become RGB",
    "transparent": "are transparent, and stand on white",
    "misnamed": "are of another format than their name says",
}


def _image_notes(tally: Tally) -> list[str]:
    return [f"{count:,} images {_DONE[note]} (the first: line {line})" for note, (count, line) in tally.seen.items()]


def _tokenizer_warnings(encoder: Encoder) -> list[str]:
    lines = []
    if not getattr(encoder.tokenizer, "chat_template", None):
        lines.append("the tokenizer has no chat template; a plain one (### User: …) is used")
    if not encoder.template.ends_turns:
        lines.append("the chat template puts nothing after an assistant turn: the model will not learn to stop")
    return lines
