"""A merge killed at any moment goes on where it was, and ends in the same bytes; a full disk costs nothing done."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from merge_folders import read, write

from merit.errors import InputError, StageError
from merit.io import sha256_file
from merit.merge import stream
from merit.merge.average import merge_checkpoints
from merit.models.writer import ShardFiles

# A merge slowed down to about a second, with small blocks and a journal that is written all the time.
SLOW = """
import sys, time
from pathlib import Path
from merit.merge import plan, stream
from merit.merge.accumulate import Accumulator
from merit.merge.average import merge_checkpoints
plan.BLOCK_ELEMENTS, stream.CHUNK, stream.JOURNAL_SECONDS = 2000, 1000, 0.02
chunk = Accumulator.chunk
def slow(self, *args):
    time.sleep(0.012)
    yield from chunk(self, *args)
Accumulator.chunk = slow
root = Path(sys.argv[1])
print("start", flush=True)
merge_checkpoints([root / "a", root / "b"], [2, 1], {1.0: root / "out", 0.5: root / "half"}, base=root / "base",
                  dtype="bfloat16", shard_bytes=200_000, memory_bytes=4_000_000)
"""


@pytest.fixture
def folders(tmp_path):
    for name in ("a", "b", "base"):
        write(tmp_path / name, {f"t{n}": torch.randn(900, 100) for n in range(4)})
    return tmp_path


def start(root):
    command = [sys.executable, "-c", SLOW, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def digests(root):
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(root.rglob("*.safetensors"))}


def test_killed_at_random_moments(folders):
    merge_checkpoints(
        [folders / "a", folders / "b"],
        [2, 1],
        {1.0: folders / "out", 0.5: folders / "half"},
        base=folders / "base",
        dtype="bfloat16",
        shard_bytes=200_000,
    )
    undisturbed = digests(folders)
    (folders / "out").rename(folders / "was-out")
    (folders / "half").rename(folders / "was-half")
    moments = random.Random(1)
    kills = 0
    while not (folders / "out").exists():
        process = start(folders)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.15) if kills < 20 else 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 15
    found = digests(folders)
    for name, digest in undisturbed.items():
        assert found[name] == digest, name
    assert [path.name for path in folders.iterdir() if path.name.startswith(".")] == []


def test_another_merge_does_not_resume_from_it(folders):
    process = start(folders)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folders / ".half.merging").exists()
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {0.5: folders / "half"}, base=folders / "base")
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {0.5: folders / "again"}, base=folders / "base")
    assert sha256_file(folders / "half/model.safetensors") == sha256_file(folders / "again/model.safetensors")


def test_two_processes_do_not_write_one_output(folders):
    process = start(folders)
    time.sleep(0.1)
    try:
        with pytest.raises(InputError, match="another process is writing"):
            merge_checkpoints([folders / "a"], [1], {0.5: folders / "half"}, base=folders / "base")
    finally:
        process.kill()
        process.wait()


def test_killed_between_the_renames(folders, monkeypatch):
    arguments = [folders / "a", folders / "b"], [1, 1], {0.5: folders / "half", 1.0: folders / "out"}
    rename = os.rename

    def fail(self, target):
        if target.name == "half":
            raise KeyboardInterrupt
        rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", fail)
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoints(*arguments, base=folders / "base")
    assert (folders / "out").exists()
    assert not (folders / "half").exists()
    merge_checkpoints(*arguments, base=folders / "base")
    assert sorted(read(folders / "half")) == ["t0", "t1", "t2", "t3"]


def test_full_disk_at_the_start_leaves_nothing(folders, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StageError, match=r"out: the disk is full; free some space and run again"):
        merge_checkpoints([folders / "a"], [1], {1.0: folders / "out"})
    assert sorted(path.name for path in folders.iterdir()) == ["a", "b", "base"]


def test_full_disk_on_the_way_resumes(folders, monkeypatch):
    monkeypatch.setattr("merit.merge.plan.BLOCK_ELEMENTS", 10_000)
    monkeypatch.setattr(stream, "JOURNAL_SECONDS", 0.0)
    writes = []
    write_once = ShardFiles.write

    def failing(self, tensor, start, data):
        writes.append(tensor)
        if len(writes) == 20:
            time.sleep(0.1)  # let what is finished reach the journal
            raise OSError(errno.ENOSPC, "No space left on device")
        write_once(self, tensor, start, data)

    monkeypatch.setattr(ShardFiles, "write", failing)
    with pytest.raises(StageError, match="the disk is full"):
        merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert not (folders / "out").exists()
    first = len(writes)
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert len(writes) - first < 36
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "again"})
    assert sha256_file(folders / "out/model.safetensors") == sha256_file(folders / "again/model.safetensors")
