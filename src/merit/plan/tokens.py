"""How many tokens each stage and each branch goes through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from merit.config.sections import EvaluateConfig
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.split.partition import Partition
from merit.split.splitter import find_splitter


@dataclass(frozen=True)
class TokenCount:
    """Tokens that compute goes by, and those of them that carry loss."""

    tokens: float
    supervised: float

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(self.tokens + other.tokens, self.supervised + other.supervised)

    def __mul__(self, factor: float) -> TokenCount:
        return TokenCount(self.tokens * factor, self.supervised * factor)


NOTHING = TokenCount(0.0, 0.0)


def total(counts: Iterable[TokenCount]) -> TokenCount:
    """Their sum."""
    return sum(counts, NOTHING)


def epoch_tokens(dataset: DatasetSummary) -> TokenCount:
    """One epoch of a dataset, its weight applied."""
    return TokenCount(dataset.train.tokens, dataset.train.supervised_tokens) * dataset.weight


def calibration_tokens(mixture: Mixture, examples: int) -> TokenCount:
    """What the gradient stage goes through: `examples` of every dataset, at the dataset's mean length."""
    return total(_some(dataset.train, examples) for dataset in mixture.datasets)


def group_tokens(mixture: Mixture, splitter: str, groups: int, partition: Partition | None) -> list[TokenCount]:
    """Tokens an epoch of each group: those of the partition, or the balanced ones that a splitter aims at.

    No balance can make the largest group smaller than the largest dataset.
    """
    each = {dataset.name: epoch_tokens(dataset) for dataset in mixture.datasets}
    if partition is not None:
        return [total(each[name] for name in group.datasets if name in each) for group in partition.groups]
    everything = total(each.values())
    found = find_splitter(splitter)
    if found.one_group or groups == 1:
        return [everything]
    if found.whole_mixture:
        return [everything] * groups
    heaviest = max(each.values(), key=lambda count: count.supervised)
    if heaviest.supervised <= everything.supervised / groups:
        return [everything * (1 / groups)] * groups
    rest = everything + heaviest * -1.0
    return [heaviest, *[rest * (1 / (groups - 1))] * (groups - 1)]


def scoring_tokens(mixture: Mixture, config: EvaluateConfig) -> TokenCount:
    """Loss of one model on every held-out example that is measured, unseen datasets and drift included."""
    held_out = total(_some(dataset.held_out, config.held_out) for dataset in [*mixture.datasets, *mixture.unseen])
    drift = config.drift * config.max_new_tokens
    return held_out + TokenCount(drift, drift)


def answering_tokens(mixture: Mixture, config: EvaluateConfig) -> TokenCount:
    """Greedy answers of one model: the prompts, and every answer at its longest."""
    scored = [dataset for dataset in [*mixture.datasets, *mixture.unseen] if dataset.scoring]
    answers = 0.0
    for dataset in scored:
        part = _some(dataset.held_out, config.generate)
        answers += part.tokens - part.supervised
        answers += min(config.generate, dataset.held_out.examples) * config.max_new_tokens
    return TokenCount(answers, 0.0)


def _some(counts: SplitCounts, examples: int) -> TokenCount:
    """`examples` of a dataset's part, or all that it has, at its mean length."""
    share = min(examples, counts.examples) / counts.examples if counts.examples else 0.0
    return TokenCount(counts.tokens, counts.supervised_tokens) * share
