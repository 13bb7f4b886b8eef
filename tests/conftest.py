"""What every test may use: a tiny random model with a chat template, and a folder of data in four formats."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from four_files import write_four_files
from tiny_llama import write_tiny_llama

# Two-thread torch jobs on two cores slow each other down; a test process and its jobs get one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (fp32, tied embeddings) and a byte-level tokenizer with ChatML."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def four_files(tmp_path: Path) -> Path:
    """A folder with four small datasets, each in another file type and another record format."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_four_files(folder)
    return folder
