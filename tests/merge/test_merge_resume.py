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

import warm
from merit.base.errors import InputError, StageError
from merit.base.files import sha256_file
from merit.merge import stream
from merit.merge.average import merge_checkpoints
from merit.models.writer import ShardFiles

# A merge slowed down to about a second, with small blocks and a journal that is written all the time.
SLOW = """
import sys, time
from pathlib import Path
from merit.merge import plan
from merit.merge import stream
from merit.merge.stream import Accumulator
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
    process = warm.Popen(command, stdout=subprocess.PIPE, text=True)
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
    deadline = time.monotonic() + 60
    while not (folders / ".half.merging").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
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


def fill_disk(patch):
    """From now on the twentieth write finds the disk full; returns what has been written."""
    write_once, writes = ShardFiles.write, []

    def failing(self, tensor, start, data):
        writes.append(tensor)
        if len(writes) == 20:
            time.sleep(0.1)  # let what is finished reach the journal
            raise OSError(errno.ENOSPC, "No space left on device")
        write_once(self, tensor, start, data)

    patch.setattr("merit.merge.plan.BLOCK_ELEMENTS", 10_000)
    patch.setattr(stream, "JOURNAL_SECONDS", 0.0)
    patch.setattr(ShardFiles, "write", failing)
    return writes


def test_full_disk_on_the_way_resumes(folders, monkeypatch):
    writes = fill_disk(monkeypatch)
    with pytest.raises(StageError, match="the disk is full"):
        merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert not (folders / "out").exists()
    first = len(writes)
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert len(writes) - first < 36
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "again"})
    assert sha256_file(folders / "out/model.safetensors") == sha256_file(folders / "again/model.safetensors")


def interrupted(folders, monkeypatch):
    """A merge that died half-way, and its staging folder."""
    with monkeypatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(StageError, match="the disk is full"):
            merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    # The journal is of these blocks.
    monkeypatch.setattr("merit.merge.plan.BLOCK_ELEMENTS", 10_000)
    monkeypatch.setattr(stream, "JOURNAL_SECONDS", 0.0)
    return folders / ".out.merging"


@pytest.mark.parametrize("name", ["model.safetensors", ".journal.jsonl"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_to_an_interrupted_merge_changes_no_bit(folders, monkeypatch, name, share, damage):
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "undisturbed"})
    file = interrupted(folders, monkeypatch) / name
    content = bytearray(file.read_bytes())
    place = int(share * len(content))
    if damage == "flip":
        content[place] ^= 2
    else:
        del content[place:]
    file.write_bytes(content)
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert digests(folders / "out") == digests(folders / "undisturbed")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "merit_merge.json", "README.md"])
def test_damage_to_a_merge_that_was_whole_but_not_in_place(folders, monkeypatch, name):
    (folders / "a" / "tokenizer.json").write_text('{"a": "tokenizer"}')
    arguments = [folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"}
    with monkeypatch.context() as patch:
        patch.setattr("merit.merge.staging.Staging.publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoints(*arguments)
    file = folders / ".out.merging" / name
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StageError, match="the interrupted merge left damaged files; run again"):
        merge_checkpoints(*arguments)
    merge_checkpoints(*arguments)
    merge_checkpoints(arguments[0], arguments[1], {1.0: folders / "undisturbed"})
    assert digests(folders / "out") == digests(folders / "undisturbed")


def test_half_a_file_that_a_kill_left_beside_the_weights_is_not_kept(folders, monkeypatch):
    (folders / "a" / "tokenizer.json").write_text('{"a": "tokenizer"}')
    staging = interrupted(folders, monkeypatch)
    (staging / "tokenizer.json").write_text('{"a": "tok')
    (staging / "config.json.x.part").write_text("{")
    (staging / "additional_chat_templates").mkdir()
    merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
    assert sorted(path.name for path in (folders / "out").iterdir()) == [
        *("README.md", "config.json", "merit_merge.json", "model.safetensors", "tokenizer.json")
    ]
    assert (folders / "out/tokenizer.json").read_text() == '{"a": "tokenizer"}'


def test_a_thread_that_dies_without_a_word_ends_the_merge(folders, monkeypatch):
    monkeypatch.setattr("merit.merge.stream.BlockStream._work", lambda self: None)
    with pytest.raises(MemoryError):
        merge_checkpoints([folders / "a", folders / "b"], [1, 1], {1.0: folders / "out"})
