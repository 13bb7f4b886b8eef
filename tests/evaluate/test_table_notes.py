"""What the results table says below its rows."""

from __future__ import annotations

import pytest

from merit.evaluate.scores import DatasetScore, ModelScores
from merit.evaluate.table import make_table


def scores_of(examples: int) -> ModelScores:
    dataset = DatasetScore(name="a", losses=[1.0] * examples, tokens=[3] * examples, exact=None)
    return ModelScores(
        label="base", method="base", kind="base", scale=1.0, fingerprint="", in_mixture=[dataset], unseen=[],
        drift=None, seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("examples", "said"), [(1, "1 held-out example"), (15, "15 held-out examples"), (16, None)])
def test_few_held_out_examples_are_told(examples: int, said: str | None) -> None:
    notes = make_table([scores_of(examples)], {}).notes
    assert notes == ([f"Only {said} in the smallest dataset: the standard errors are rough."] if said else [])
