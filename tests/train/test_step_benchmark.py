"""The arithmetic that benchmarks/training_step.py divides by, against torch's own count of a step's products."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from merit.compute.head import task_nll, task_of
from merit.models.loading import load_model
from merit.train.trainer import attending, collate
from prompted import prompted

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from training_step import Batch, Products

ROWS = prompted([(3, 4), (17, 2), (1, 9)])


def test_counts_the_products_of_a_step(tiny_model: Path) -> None:
    model = load_model(tiny_model).train()
    packed = collate(ROWS)
    assert packed is not None
    with FlopCounterMode(display=False) as counter, attending(model, packed):
        task_nll(model, task_of(packed)).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = Products(model, torch.float32, time.process_time)
    linear, whole = products.flops_of([Batch.of(packed)])
    assert linear == sum(flops for name, flops in counted.items() if "mm" in str(name))
    assert whole > linear
    assert products.run([Batch.of(packed)]) >= 0
    assert products.flops == linear


@pytest.mark.parametrize("padded", [False, True])
def test_counts_pairs_of_query_and_key_without_padding(padded: bool) -> None:
    """Two examples of 3 and 2 tokens of their own; packed they share a prefix of 4, padded they share nothing."""
    if padded:
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        batch = {"input_ids": torch.ones(2, 3), "attention_mask": mask, "labels": torch.full((2, 3), -100)}
        assert Batch.of(batch) == Batch(tokens=5, supervised=0, pairs=6 + 3)
        return
    segments = torch.tensor([[0, 4, 0, 0], [4, 7, 0, 4], [7, 9, 0, 4]])
    batch = {"input_ids": torch.ones(1, 9), "segments": segments, "labels": torch.full((1, 10), -100)}
    assert Batch.of(batch) == Batch(tokens=9, supervised=0, pairs=10 + (6 + 12) + (3 + 8))
