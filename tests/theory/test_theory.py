"""The quadratic model against itself: identities on separate ways, slopes, exhaustive search."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from merit.cli.main import run
from merit.theory.lab import TheoryResult, check_filtering, check_identity, check_shrinkage, check_slopes, run_lab
from merit.theory.quadratic import Quadratic, measured_gain, predicted_gain, random_tasks
from merit.theory.splits import best_gain, compare_splits, split_outcome


def test_theorem_1_is_an_identity() -> None:
    found = check_identity(np.random.default_rng(1), instances=200)
    assert found.largest_error <= 1e-10
    assert found.negative_with_indefinite > 100  # without H ⪰ 0 the sign is anything


def test_two_branches_by_hand() -> None:
    task = Quadratic(np.diag([2.0, 8.0]), np.array([1.0, -1.0]), 3.0)
    deltas, weights = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([0.5, 0.5])
    # Var of (1, −1) is 1, of (0, 1) it is ¼: ½ (2·1 + 8·¼) = 2.
    assert measured_gain(task, deltas, weights) == pytest.approx(2.0)
    assert predicted_gain(np.array([2.0, 8.0]), np.eye(2), deltas, weights) == pytest.approx(2.0)


def test_proposition_1_slopes_and_where_they_bend() -> None:
    slopes = {slope.quantity: slope for slope in check_slopes()}
    assert slopes["lambda"].early == pytest.approx(3.0, abs=0.05)
    assert slopes["lambda"].late == pytest.approx(1.0, abs=0.05)
    # x e^−x / (1 − e^−x) = ½ at x = 1.256: half of the way from 3 to 1.
    assert slopes["lambda"].bends == pytest.approx(1.256, rel=0.05)
    assert slopes["lambda"].leaves_band == pytest.approx(0.05, rel=0.2)
    assert slopes["alpha"].early == pytest.approx(2.0, abs=0.05)
    assert slopes["alpha"].late == pytest.approx(2.0, abs=0.05)  # quadratic losses have no other power
    assert slopes["alpha"].bends < 1  # within the basin's width


def test_training_in_closed_form_is_gradient_descent() -> None:
    tasks = random_tasks(np.random.default_rng(2), datasets=5, size=6, own_curvature=0.3)
    group = [0, 2, 3]
    task = tasks.pooled(group)
    delta = np.zeros(6)
    for _ in range(17):
        delta -= 0.05 * (task.slope + task.hessian @ delta)
    np.testing.assert_allclose(tasks.train(group, rate=0.05, steps=17), delta, rtol=1e-10)


def test_pooled_loss_is_the_weighted_mean_of_the_datasets() -> None:
    tasks = random_tasks(np.random.default_rng(3), datasets=4, size=5, own_curvature=0.3)
    delta = np.random.default_rng(4).standard_normal(5)
    each = [0.5 * (delta - c) @ h @ (delta - c) for h, c in zip(tasks.hessians, tasks.optima, strict=True)]
    assert tasks.pooled().loss(delta[None, :])[0] == pytest.approx(tasks.weights @ each)


def test_shared_curvature_makes_every_merge_the_same() -> None:
    tasks = random_tasks(np.random.default_rng(5), datasets=6, size=8)
    losses = [split_outcome(tasks, groups)[1] for groups in ([[0, 1, 2], [3, 4, 5]], [[0, 5], [1, 2, 3, 4]])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert check_shrinkage(np.random.default_rng(5), draws=2).equals_early_stopping < 1e-10


def test_best_gain_is_that_of_a_search_through_all_partitions() -> None:
    tasks = random_tasks(np.random.default_rng(6), datasets=6, size=8)
    reference = [[0, 1, 2], [3, 4, 5]]
    total = tasks.tokens.sum()
    limit = abs(2 * tasks.tokens[:3].sum() - total)
    found = []
    for size in range(1, 6):
        for group in itertools.combinations(range(6), size):
            if abs(2 * tasks.tokens[list(group)].sum() - total) <= limit:
                found.append(split_outcome(tasks, [list(group), [t for t in range(6) if t not in group]])[0])
    assert best_gain(tasks, reference) == pytest.approx(max(found), rel=1e-9)


def test_conflict_axes_gain_more_than_random_groups() -> None:
    found = compare_splits(np.random.default_rng(7), instances=20)
    score = {item.splitter: item for item in found.scores}
    assert score["pca"].gain_over_random > 2
    assert score["adversarial"].gain_over_random < 1
    assert score["pca"].gain_captured is not None
    assert 0.8 < score["pca"].gain_captured <= 1
    assert found.merged_loss_spread < 1e-10
    assert compare_splits(np.random.default_rng(7), instances=3, axes=2).groups == 4


def test_shrinkage_lies_between_one_and_the_number_of_branches() -> None:
    ratios = check_shrinkage(np.random.default_rng(8), branches=4, draws=3).ratio
    assert all(1 <= ratio <= 4 + 1e-9 for ratio in ratios)
    assert ratios == sorted(ratios, reverse=True)


def test_averaging_filters_only_what_conflicts() -> None:
    even, *_, steep = check_filtering(np.random.default_rng(9))
    assert even.effective_condition == pytest.approx(even.condition, rel=0.15)
    assert even.condition / 4 * 0.9 < steep.effective_condition < 0.5 * even.condition


def test_the_lab_repeats_itself_and_survives_json() -> None:
    first = run_lab(seed=3, instances=3)
    assert first == run_lab(seed=3, instances=3)
    assert TheoryResult.model_validate_json(first.model_dump_json()) == first


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["theory", "--instances", "3"]) == 0
    assert "Theorem 1" in capsys.readouterr().out
    assert run(["theory", "--instances", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identity"]["instances"] == 3
    assert run(["theory", "--instances", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
