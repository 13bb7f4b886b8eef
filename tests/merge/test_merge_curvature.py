"""Curvature-aware merges against their formulas, written out densely, and at their limits."""

from __future__ import annotations

import numpy as np
import torch
from tiny_curvature import ROWS, gradient_squares, model_with
from torch import nn

from merit.base import extensions
from merit.config.sections import MergeConfig
from merit.merge.rules.fisher import FisherMerge

SEEDS = (1, 2, 3)
WEIGHTS = (3.0, 1.0, 2.0)


def merged(kind, ridge):
    """The step of three branches, and each branch's own."""
    theta0 = dict(model_with(0).named_parameters())
    start = {name: value.detach().clone() for name, value in theta0.items()}
    merge = kind(start)
    steps = []
    for seed, weight in zip(SEEDS, WEIGHTS, strict=True):
        branch = model_with(seed)
        step = {name: value.detach() - start[name] for name, value in branch.named_parameters()}
        steps.append(step)
        merge.add(branch, step, weight, ROWS[seed])
    return merge.solve(ridge), steps


def mean(steps, name):
    return sum(w * step[name].double() for w, step in zip(WEIGHTS, steps, strict=True)) / sum(WEIGHTS)


def test_a_strong_ridge_is_the_token_average():
    found, steps = merged(FisherMerge, 1e9)
    for name, value in found.items():
        torch.testing.assert_close(value.double(), mean(steps, name), atol=1e-6, rtol=1e-5)


def test_fisher_by_its_formula():
    found, steps = merged(FisherMerge, 0.5)
    name = "model.layers.0.self_attn.v_proj.weight"
    share = np.array(WEIGHTS) / sum(WEIGHTS)
    squares = [gradient_squares(model_with(seed), name, ROWS[seed]) for seed in SEEDS]
    total = sum(w * f for w, f in zip(share, squares, strict=True))
    level = 0.5 * float(total.mean())
    pulled = sum(w * f * step[name].double() for w, f, step in zip(share, squares, steps, strict=True))
    expected = (pulled + level * mean(steps, name)) / (total + level)
    torch.testing.assert_close(found[name].double(), expected, atol=1e-7, rtol=1e-4)


def test_equal_branches_stay_what_they_are():
    start = {name: value.detach().clone() for name, value in model_with(0).named_parameters()}
    branch = model_with(1)
    step = {name: value.detach() - start[name] for name, value in branch.named_parameters()}
    merge = FisherMerge(start)
    for seed in SEEDS:
        merge.add(branch, step, 1.0, ROWS[seed])
    for name, value in merge.solve(0.1).items():
        torch.testing.assert_close(value, step[name], atol=1e-6, rtol=1e-4)


def test_tied_heads_are_not_solved_twice():
    model = model_with(0)
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_rule_has_a_ridge_of_its_own():
    """`merge.ridge` may be left out; its description in the configuration says what it then is."""
    assert "0.01 for regmean and 0.1 for others" in MergeConfig.model_fields["ridge"].description
    for name in extensions.names("rules"):
        assert MergeConfig(weights=name).effective_ridge == (0.01 if name == "regmean" else 0.1)
        assert MergeConfig(weights=name, ridge=3).effective_ridge == 3
