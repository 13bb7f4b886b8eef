"""Memory that runs out, in whatever words a library says so, and disks that fail: one line, and a rerun resumes."""

from __future__ import annotations

import errno
import os

import pytest
from command import Command, config_text

from merit.base.errors import InputError, out_of_memory


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def loading_failed() -> InputError:
    error = InputError("cannot be loaded")
    error.__cause__ = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"
    )
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libx.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),
        loading_failed(),
    ],
)
def test_out_of_memory(error, merit: Command, tiny_model, four_files, monkeypatch):
    def fail(*_args, **_options):
        raise error

    (four_files / "merit.yaml").write_text(config_text(tiny_model))
    monkeypatch.setattr("merit.pipeline.run_pipeline", fail)
    outcome = merit("run", four_files / "merit.yaml")
    assert (outcome.code, len(outcome.lines)) == (1, 1), outcome
    assert outcome.lines[0].startswith("out of memory; free some, or lower `train.micro_batch_tokens`")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        InputError("out of memory"),
        FileNotFoundError(errno.ENOENT, "No such file", "out of memory"),
    ],
)
def test_what_only_quotes_it_is_no_lack_of_memory(error):
    assert not out_of_memory(error)


def test_a_failing_disk(merit: Command, tiny_model, four_files, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/x")

    (four_files / "merit.yaml").write_text(config_text(tiny_model))
    monkeypatch.setattr("merit.pipeline.run_pipeline", fail)
    outcome = merit("run", four_files / "merit.yaml")
    assert (outcome.code, outcome.lines) == (1, ["/data/x: Input/output error; run again to resume"])
