"""What every test may use: a tiny random model with a chat template, and a folder of data in four formats."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import warm
from four_files import write_four_files
from tiny_llama import write_tiny_llama

# Two-thread torch jobs on two cores slow each other down; a test process and its jobs get one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell starts what it puts into the background with Ctrl-C ignored; what tests start and interrupt must not be so.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["MERIT_COLD_JOBS"] = "1"  # each test would do the imports once more, for a job or two (tests/warm.py)

# Files that take longest go first, so that no worker is left alone with one of them (seconds on one core).
_SECONDS = {
    "pipeline/test_engines.py": 150,
    "pipeline/test_rounds_engines.py": 100,
    "jobs/test_ray_executor.py": 80,
    "pipeline/test_measured_run.py": 65,
    "cli/test_interrupts.py": 55,
    "pipeline/test_elsewhere.py": 40,
    "pipeline/test_golden_run.py": 40,
    "pipeline/test_kill_resume.py": 35,
    "models/test_architectures.py": 33,
    "pipeline/test_vision_run.py": 30,
    "hostile/test_mended.py": 22,
    "evaluate/test_benchmarks.py": 21,
    "models/test_vision_models.py": 21,
    "study/test_study_run.py": 21,
    "cli/test_damaged_models.py": 20,
    "cli/test_bad_input.py": 19,
    "data/test_sources.py": 19,
    "faults/test_faults.py": 15,
    "hostile/test_hostile_campaign.py": 15,
    "docs/test_pages_run.py": 14,
    "cli/test_terminal.py": 13,
    "cli/test_disk.py": 12,
    "study/test_study_scores.py": 12,
    "cli/test_damage.py": 12,
    "diagnose/test_diagnose_command.py": 12,
    "jobs/test_local_executor.py": 11,
    "gradients/test_recompute.py": 11,
    "pipeline/test_conflict_stage.py": 10,
    "gradients/test_sharding.py": 10,
    "split/test_stability.py": 10,
    "merge/test_merge_resume.py": 8,
    "pipeline/test_curved_run.py": 8,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files by what they take; tests of one file stay together and in order."""
    items.sort(key=lambda item: -_SECONDS.get("/".join(item.path.parts[-2:]), 0))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (fp32, tied embeddings) and a byte-level tokenizer with ChatML."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def warm_jobs() -> Iterator[None]:
    """Jobs of the local engine are forked from a process that has imported torch: starting one takes no time."""
    with warm.jobs():
        yield


@pytest.fixture
def four_files(tmp_path: Path) -> Path:
    """A folder with four small datasets, each in another file type and another record format."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_four_files(folder)
    return folder
