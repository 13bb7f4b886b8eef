"""Reads every dataset to its end before a model is loaded, and tells all that is wrong at once. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.base.words import plural
from merit.config.run import RunConfig
from merit.data.build import Encoding
from merit.data.encode import Encoder
from merit.data.mixture import DatasetSummary
from merit.data.reading import DatasetReader, Selection, is_skipped, select

SHOWN = 20  # problems told of one dataset; the rest is counted
_ALIKE = 5  # of those, with the same words
_FEW = 32  # train examples below which a dataset is called small
_FEW_HELD_OUT = 8
_ROW_WEIGHTS = ("weight", "loss_weight", "sample_weight", "example_weight")


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
    wanted = [(name, False) for name in config.mixture] + [(name, True) for name in config.evaluate.unseen]
    checks = []
    mixed: list[NDArray[np.uint64]] = []  # content hashes of the mixture
    asked: list[NDArray[np.uint64]] = []  # and its prompts
    with progress.bar("check", total=2.0 * len(wanted)) as bar:
        for index, (name, unseen) in enumerate(wanted):

            def show(done: float, start: int = 2 * index, name: str = name) -> None:
                bar.update(start + done, note=name)

            check = _Check(name, unseen, config, encoder)
            check.read(base, show)
            if not unseen:
                mixed.append(check.hashes)
                asked.append(check.prompts)
            else:
                total = len(check.hashes)
                shared = int(np.isin(check.hashes, np.concatenate(mixed)).sum())
                if shared:
                    check.warnings.append(
                        f"{shared:,} of its {total:,} examples are also in the mixture: they are not unseen"
                    )
                if (prompts := int(np.isin(check.prompts, np.concatenate(asked)).sum())) > shared:
                    check.warnings.append(f"{prompts:,} of its {total:,} examples have prompts of the mixture")
            checks.append(check.found())
    return CheckReport(
        datasets=checks,
        max_length=config.train.max_length,
        warnings=_tokenizer_warnings(encoder) if encoder is not None else [],
        general=[str(error) for error in general],
    )


class _Errors:
    """The first errors as lines, and how many more there are: a fault of every row must not hide another one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.more = 0
        self._alike: Counter[tuple[str | None, str]] = Counter()

    def add(self, error: InputError) -> None:
        kind = error.field, error.message
        self._alike[kind] += 1
        if len(self.lines) < SHOWN and self._alike[kind] <= _ALIKE:
            self.lines.append(str(error))
        else:
            self.more += 1


class _Check:
    """One dataset while it is checked; rows that are to be skipped count apart."""

    def __init__(self, name: str, unseen: bool, config: RunConfig, encoder: Encoder | None) -> None:
        self.name, self.unseen, self.config, self.encoder = name, unseen, config, encoder
        self.item = (config.evaluate.unseen if unseen else config.mixture)[name]
        self.problems, self.left_out = _Errors(), _Errors()
        self.warnings: list[str] = []
        self.rows = 0
        self.hashes = self.prompts = np.zeros(0, np.uint64)  # of the rows in use
        self.summary: DatasetSummary | None = None

    def add_row(self, error: InputError) -> None:
        (self.left_out if is_skipped(error, self.item) else self.problems).add(error)

    def read(self, base: Path, show: Callable[[float], None]) -> None:
        try:
            reader = DatasetReader.open(self.name, self.item, base, unseen=self.unseen)
            selection = select(reader, self.add_row, show)
            self.rows, self.hashes = selection.rows, selection.hashes[selection.keep]
            self.prompts = selection.prompts[selection.keep]
            if self.encoder is not None:
                encoding = Encoding(reader, selection, self.encoder, self.config.held_out_fraction)
                for _ in encoding.rows(self.add_row, lambda done: show(1 + done)):
                    pass
                if (again := encoding.again()) is not None:
                    encoding = again
                    for _ in encoding.rows(lambda _: None, lambda done: show(1 + done)):  # they are told already
                        pass
                # Where rows are bad, that none is left says nothing new.
                if (whole := encoding.problem()) is not None and not self.problems.lines:
                    self.problems.add(whole)
                if encoding.lengths:
                    self.summary = encoding.summary()
                    self.warnings = _warnings(self.summary, selection, self.config, self.encoder, unseen=self.unseen)
                    self.warnings += _image_notes(encoding)
                    if encoding.lost_reasoning:
                        self.warnings.append(
                            f"the chat template leaves reasoning out of {encoding.lost_reasoning:,} examples, which is "
                            "not learned; make each turn the last of its own row to keep it"
                        )
                if encoding.first_special is not None:
                    line, token = encoding.first_special
                    self.warnings.append(
                        f"{encoding.special:,} examples hold a special token in their text (the first: line {line}, "
                        f"{token!r}): the model reads the token, not the text; take out what another template left"
                    )
            if told := [name for name in _ROW_WEIGHTS if name in reader.format.unread]:
                self.warnings.append(
                    f"a row has no weight of its own: put rows of another `{told[0]}` into a dataset of their own, and "
                    "set its `weight`"
                )
            if unread := set(reader.format.unread) - {*self.item.where}:
                names = sorted(name or "a column without a name" for name in unread)
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                self.warnings.append(f"not read: {', '.join(names[:SHOWN])}{more}")
        except InputError as error:
            self.problems.add(error)

    def found(self) -> DatasetCheck:
        left_out = [f"left out: {line}" for line in self.left_out.lines]
        if self.left_out.more:
            left_out.append(f"left out: {self.left_out.more:,} more bad rows")
        return DatasetCheck(
            name=self.name,
            source=self.item.path,
            unseen=self.unseen,
            rows=self.rows,
            summary=self.summary,
            problems=self.problems.lines,
            more_problems=self.problems.more,
            warnings=[*left_out, *self.warnings],
        )


def _warnings(
    summary: DatasetSummary, selection: Selection, config: RunConfig, encoder: Encoder, *, unseen: bool
) -> list[str]:
    total = summary.train.examples + summary.held_out.examples
    lines = []
    if summary.truncated:
        share = summary.truncated / total
        lines.append(f"{summary.truncated:,} of {total:,} examples ({share:.1%}) are cut at {encoder.limit_name}")
    if encoder.positions is not None and not encoder.positions.table and summary.longest > encoder.positions.count:
        lines.append(
            f"its longest example has {summary.longest:,} tokens, and the model was made for "
            f"{encoder.positions.count:,}: set `train.max_length` to cut longer ones"
        )
    if no_label := summary.dropped - selection.unanswered:
        lines.append(f"{no_label:,} examples are left out: their prompt alone fills {encoder.limit_name}")
    if selection.unanswered:
        lines.append(f"{selection.unanswered:,} entries are left out: the generator gives no answer to them")
    if selection.duplicates:
        told = plural(selection.duplicates, "row repeats", "rows repeat")
        lines.append(f"{told} another one and {'is' if selection.duplicates == 1 else 'are'} left out")
    if not unseen and summary.train.examples < _FEW:
        lines.append(f"only {plural(summary.train.examples, 'example')} to train on")
    elif not unseen and summary.train.examples < config.calibration.examples:
        have, wanted = summary.train.examples, config.calibration.examples
        lines.append(
            f"only {plural(have, 'training example')} to measure the gradient on; `calibration.examples` is {wanted}"
        )
    if summary.held_out.examples < _FEW_HELD_OUT:
        lines.append(
            f"only {plural(summary.held_out.examples, 'held-out example')}: its results will be very uncertain"
        )
    return lines


_DONE = {
    "animated": "are animated: only the first frame is seen",
    "turned": "are turned as their EXIF orientation says",
    "16-bit": "have 16 bits or real numbers a channel, which become 8",
    "CMYK": "are CMYK, and become RGB",
    "transparent": "are transparent, and stand on white",
    "misnamed": "are of another format than their name says",
}


def _image_notes(encoding: Encoding) -> list[str]:
    return [f"{count:,} images {_DONE[note]} (the first: line {line})" for note, (count, line) in encoding.seen.items()]


def _tokenizer_warnings(encoder: Encoder) -> list[str]:
    lines = []
    if not getattr(encoder.tokenizer, "chat_template", None):
        lines.append("the tokenizer has no chat template; a plain one (### User: …) is used")
    if not encoder.template.ends_turns:
        lines.append("the chat template puts nothing after an assistant turn: the model will not learn to stop")
    elif encoder.template.closing and encoder.template.end_token is None:
        lines.append(
            f"the chat template ends an assistant turn with {encoder.template.closing!r}, which is no special token: "
            "generation will not stop there by itself"
        )
    elif encoder.template.end_token not in (None, encoder.tokenizer.eos_token_id):
        lines.append(
            f"an assistant turn ends with {encoder.template.closing!r}, which is not the tokenizer's end token "
            f"({encoder.tokenizer.eos_token}): evaluation stops at both, and so will the merged model "
            "(generation_config.json)"
        )
    return lines
