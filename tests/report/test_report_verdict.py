"""The conclusion: only what the figures bear out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_run

from merit.evaluate.scores import Comparison
from merit.report.evidence import Evidence, read_evidence
from merit.report.verdict import Verdict, reach_verdict


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("verdict") / "run").root)


def judged(evidence: Evidence, *found: tuple[str, str, float, float]) -> Verdict:
    assert evidence.table is not None
    comparisons = [
        Comparison(a="merit", b=b, face=face, difference=difference, standard_error=error)
        for b, face, difference, error in found
    ]
    table = evidence.table.model_copy(update={"comparisons": comparisons})
    verdict = reach_verdict(replace(evidence, table=table))
    assert verdict is not None
    return verdict


def test_within_the_95_percent_interval_nothing_is_claimed(evidence: Evidence) -> None:
    verdict = judged(evidence, ("joint", "in_mixture", -0.01959, 0.01))
    assert verdict.headline == "The merge of 4 branches cannot be told apart from joint training on these examples."
    assert verdict.against[0].outcome.startswith("not told apart in the mixture (−0.020")


def test_beyond_the_95_percent_interval_it_is_said_either_way(evidence: Evidence) -> None:
    worse = judged(evidence, ("joint", "in_mixture", 0.01961, 0.01))
    assert worse.headline == "The merge of 4 branches is worse than joint training in the mixture."
    better = judged(evidence, ("joint", "in_mixture", -0.01961, 0.01), ("joint", "unseen", 0.0, 0.01))
    assert better.headline == (
        "The merge of 4 branches is better than joint training in the mixture; on unseen datasets the two cannot be "
        "told apart."
    )


def test_a_rival_that_dominates_is_named(evidence: Evidence) -> None:
    verdict = judged(evidence, ("joint@0.5", "in_mixture", 0.3, 0.01), ("joint@0.5", "unseen", 0.0, 0.01))
    assert any("`joint@0.5`" in line and "nothing here speaks for the merge" in line for line in verdict.remarks)


def test_a_better_merge_of_the_same_branches_is_in_the_headline(evidence: Evidence) -> None:
    assert evidence.table is not None
    row = next(row for row in evidence.table.rows if row.label == "joint@0.5")
    also = row.model_copy(update={"label": "merit-actmat", "method": "merit-actmat", "branches": "merit"})
    there = replace(evidence, table=evidence.table.model_copy(update={"rows": [*evidence.table.rows, also]}))
    found = [("joint", "in_mixture", 0.3, 0.01), ("merit-actmat", "in_mixture", 0.3, 0.01)]
    verdict = judged(there, *found, ("merit-actmat", "unseen", 0.3, 0.01), ("merit-actmat", "drift", 0.0, 0.01))
    assert verdict.headline == (
        "The merge of 4 branches is worse than joint training in the mixture. Of the same branches, `merit-actmat` is "
        "the better merge in the mixture and on unseen datasets."
    )
    drifts = judged(there, *found, ("merit-actmat", "drift", -0.3, 0.01))
    assert drifts.headline == "The merge of 4 branches is worse than joint training in the mixture."


def test_without_joint_training_the_gap_is_admitted(evidence: Evidence) -> None:
    alone = replace(evidence, methods=[evidence.main])
    verdict = reach_verdict(alone)
    assert verdict is not None
    assert any("nothing here says what splitting gained" in line for line in verdict.caveats)
    assert "θ0 (untuned)" in verdict.headline


def test_without_paired_comparisons_errors_add_up(evidence: Evidence) -> None:
    assert evidence.table is not None
    verdict = reach_verdict(replace(evidence, table=evidence.table.model_copy(update={"comparisons": []})))
    assert verdict is not None
    item = next(item for item in verdict.comparisons if item.b == "joint" and item.face == "in_mixture")
    assert item.difference == pytest.approx(0.54)
    assert item.standard_error == pytest.approx(0.04 * 2**0.5)
    assert any("not example by example" in line for line in verdict.caveats)


def test_the_merging_gain_is_the_weighted_mean_minus_the_merge(evidence: Evidence) -> None:
    weights = evidence.main.weights
    gain = sum(w * (2.3 + 0.1 * k) for k, w in enumerate(weights)) - 2.03
    verdict = reach_verdict(evidence)
    assert verdict is not None
    assert any(f"The gain of +{gain:.3f} is positive" in line for line in verdict.remarks)


def test_nothing_to_say_before_evaluation(tmp_path: Path) -> None:
    assert reach_verdict(read_evidence(make_run(tmp_path / "run", until="merge").root)) is None
