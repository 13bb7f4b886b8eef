"""Decay toward θ0: the closed form, and what it does to a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from merit.config.sections import TrainConfig
from merit.train.callbacks import PullCallback


def test_one_step_by_the_formula():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    callback = PullCallback(model, pull=5.0)
    with torch.no_grad():  # a checkpoint that is resumed from, or a step of training
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    moved = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.02}])
    callback.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    for name, rate in (("weight", 0.1), ("bias", 0.02)):
        expected = moved[name] - rate * 5.0 * (moved[name] - start[name])
        torch.testing.assert_close(getattr(model, name).detach(), expected)


def test_it_never_overshoots():
    model = nn.Linear(2, 2)
    start = model.weight.detach().clone()
    callback = PullCallback(model, pull=1e6)
    with torch.no_grad():
        model.weight.add_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    callback.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    torch.testing.assert_close(model.weight.detach(), start)


def test_it_is_a_field_of_the_recipe():
    assert TrainConfig(pull=2).pull == 2
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TrainConfig(pull=-1)
