"""A model sharded over two processes has the sketch of the model in one piece."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fsdp_worker import CASES
from tiny_models import examples, tiny

import warm
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What the two processes found."""
    out = tmp_path_factory.mktemp("fsdp") / "out.npz"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "fsdp_worker.py"), str(out)]
    workers = [
        warm.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=1800)[1] for worker in workers]  # beside other tests, on few cores
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return np.load(out)


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_two_ranks(sharded, architecture, kind):
    engine = GradientEngine(tiny(architecture), SketchSpec(kind=kind, fold=7, least=1, stride=5), batch_tokens=64)
    for count in (7, 1):
        found = sharded[f"{architecture} {kind} {count}"]
        want = engine.measure("a", examples(count))
        assert np.linalg.norm(found[:-2] - want.sums.ravel()) <= 1e-5 * np.linalg.norm(want.sums)
        assert found[-2:] == pytest.approx(want.losses, rel=1e-5)
    assert sharded[f"{architecture} {kind} in full"].tolist() == []
