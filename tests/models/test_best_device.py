"""Where models go."""

from __future__ import annotations

import pytest
import torch

from merit.models.loading import best_device


def test_a_cuda_build_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """torch names the accelerator that it was built for unless it is asked whether there is one."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert best_device() == torch.device("cpu")
