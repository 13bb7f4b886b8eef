"""`merit env`."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest
from command import Command

from merit.jobs.devices import usable_cores


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_everything_that_a_bug_report_needs(merit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path / "models" / "here"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = json.loads(merit("env", "--json").out)
    assert found["versions"]["merit"] == metadata.version("merit-tuning")
    assert found["versions"]["python"] == platform.python_version()
    for package in ("torch", "transformers", "trl", "numpy", "safetensors"):
        assert found["versions"][package] == metadata.version(package)
    assert found["extras"]["slurm"] == f"submitit {metadata.version('submitit')}"
    assert found["machine"]["cores"] == usable_cores()
    assert 0 < found["machine"]["memory free GB"] < found["machine"]["memory GB"]
    assert found["devices"]["GPUs"] == 0
    assert found["settings"]["OMP_NUM_THREADS"] == "3"
    assert found["caches"]["merit"].startswith(f"{tmp_path}/models/here (")
    assert found["caches"]["merit"].endswith("GB free, not there yet)")
    assert found["caches"]["Hub"].endswith("GB free)")


def test_the_build_of_torch_is_what_torch_says(merit: Command):
    import torch

    found = json.loads(merit("env", "--json").out)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    assert found["devices"]["torch built for"] == build


def test_in_words(merit: Command):
    out = merit("env").out
    assert "versions:\n  merit: " in out
    assert "extras:\n" in out
    assert f"  cores: {usable_cores()}\n" in out
