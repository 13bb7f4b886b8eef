"""The mixture: ordered, uniquely named datasets with what a run needs to know of each."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field

from merit.base.record import Record
from merit.config.sections import Balance


class SplitCounts(Record):
    """What one part (train, held-out) of a dataset holds."""

    examples: int
    tokens: int
    supervised_tokens: int


class Rendered(Record):
    """An example as the model sees it; `spans` are the characters [start, end) of `text` that carry loss."""

    text: str
    spans: list[tuple[int, int]]
    images: list[str] = Field(default_factory=list)  # small, as data addresses

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut at the spans' ends, in order, each piece with whether it carries loss."""
        cut, at = [], 0
        for start, end in self.spans:
            cut += [(self.text[at:start], False), (self.text[start:end], True)]
            at = end
        return [piece for piece in (*cut, (self.text[at:], False)) if piece[0]]


class DatasetSummary(Record):
    """One dataset of the mixture after reading. Counts are per epoch, `weight` not yet applied."""

    name: str
    source: str
    format: str
    weight: float
    train: SplitCounts
    held_out: SplitCounts
    length_quantiles: dict[str, int]  # "0.5", "0.9", "1.0" → tokens an example, over all rows
    truncated: int
    duplicates: int
    skipped: int  # rows beyond max_examples
    dropped: int = 0  # rows with nothing to learn: no answer in the source, or no supervised token within max_length
    bad_images: int = 0  # rows left out for an image that cannot be used
    bad_rows: int = 0  # rows left out for anything else that is wrong with them
    images: int = 0  # in the rows that are used
    scoring: str | None  # "verifier", "reference" or None: how exact match is decided
    fingerprint: str  # of the encoded content
    rendered: list[Rendered]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return self.length_quantiles["1.0"]

    @property
    def planned_tokens(self) -> int:
        """Supervised tokens that one epoch trains on, weight applied: what a branch weighs in the merge."""
        return round(self.train.supervised_tokens * self.weight)

    @property
    def planned_examples(self) -> int:
        """Examples that one epoch trains on, weight applied."""
        return round(self.train.examples * self.weight)


class Mixture(Record):
    """`mixture.json`. `datasets` are trained on, `unseen` only measured."""

    datasets: list[DatasetSummary]
    unseen: list[DatasetSummary]
    max_length: int
    tokenizer_fingerprint: str

    @cached_property
    def names(self) -> list[str]:
        return [dataset.name for dataset in self.datasets]

    @property
    def planned_tokens(self) -> dict[str, int]:
        return {dataset.name: dataset.planned_tokens for dataset in self.datasets}

    @property
    def planned_examples(self) -> dict[str, int]:
        return {dataset.name: dataset.planned_examples for dataset in self.datasets}

    @property
    def answered(self) -> list[DatasetSummary]:
        """The datasets whose examples can be answered and found right or wrong. Exact match is theirs alone."""
        return [dataset for dataset in self.datasets if dataset.scoring]

    def sizes(self, balance: Balance) -> dict[str, int]:
        """Dataset → what it weighs in a cut."""
        return self.planned_examples if balance == "samples" else self.planned_tokens
