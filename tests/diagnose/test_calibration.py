"""Calibration stability against plain gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from merit.compute.losses import supervised_nll
from merit.config.calibration import CalibrationConfig
from merit.data.example import Encoded
from merit.diagnose.bench import Conflict
from merit.diagnose.checks.calibration import calibration, calibration_sizes
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec


def test_sizes_end_with_the_largest() -> None:
    assert calibration_sizes(200) == [10, 20, 50, 100, 150, 200]
    assert calibration_sizes(2) == [2]


def _examples(seed: int, count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(1, 17, (6,), generator=generator).tolist() for _ in range(count)]
    return [Encoded(ids, [-100, -100, *ids[2:]]) for ids in made]


def test_cosines_of_nested_means(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    data = {name: _examples(seed, 8) for seed, name in enumerate("abcd")}
    data["d"] = data["d"][:3]  # fewer than the largest: its later cosines are 1
    engine = GradientEngine(model, SketchSpec(kind="full"), batch_tokens=64)
    conflict = Conflict(np.eye(4), dict.fromkeys(data, 10), axes=1, centre="both", calibration=CalibrationConfig())
    found = calibration(engine, data, conflict)
    assert [point.examples for point in found.points] == [2, 4, 6, 8]
    assert found.points[-1].cosine == pytest.approx(1)
    assert found.points[-1].rand == 1

    def gradient(examples: list[Encoded]) -> np.ndarray:
        nll = supervised_nll(model, examples).nll.sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(nll, list(model.parameters()))]).numpy()

    cosines = []
    for examples in data.values():
        a, b = gradient(examples[:4]), gradient(examples)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.points[1].cosine == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found.points[1].cosine_sd == pytest.approx(np.std(cosines, ddof=1), rel=1e-3)
