"""The outer step of a merge: against PyTorch's own SGD, over several rounds; resumed after kills; verified."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from merge_folders import exact_mean, read, write

import warm
from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.base.kept import damaged
from merit.config.sections import OuterConfig
from merit.merge.average import merge_checkpoints
from merit.merge.outer import Outer
from merit.merge.recipe import mergekit_recipe
from merit.merge.record import load_record
from merit.merge.verify import verify_merge

WEIGHTS = [3, 1]
SHAPES = {"up": (70, 130), "norm": (130,), "scalar": ()}


def tensors(offset, dtype=torch.float32):
    found = {name: (offset + torch.randn(shape)).to(dtype) for name, shape in SHAPES.items()}
    return found | {"positions": torch.arange(5)}


def rounds(root, settings, count, **options):
    """Merges `count` rounds of two branches each, whose weights do not depend on the merges."""
    start, before = root / "base", None
    for number in range(count):
        last, home = number == count - 1, root / f"{number}"
        keep = home / "momentum" if settings.momentum and not last else None
        branches = [root / f"{name}{number}" for name in "ab"]
        outer = Outer(settings, before, keep)
        given = None if number == 0 else start
        home.mkdir()
        merge_checkpoints(
            branches, WEIGHTS, {1.0: home / "merged"}, base=root / "base", start=given, outer=outer, **options
        )
        start, before = home / "merged", keep
    return root


@pytest.fixture
def folders(tmp_path):
    torch.manual_seed(0)
    write(tmp_path / "base", tensors(0.0))
    for number in range(3):
        for name in "ab":
            write(tmp_path / f"{name}{number}", tensors(0.5 * number))
    return tmp_path


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (0.5, 0.0), (1.0, 0.3)])
def test_three_rounds_are_the_steps_of_pytorchs_optimizer(folders, rate, momentum):
    rounds(folders, OuterConfig(rate=rate, momentum=momentum), 3)
    base = read(folders / "base")
    for name in SHAPES:
        point = torch.nn.Parameter(base[name].double())
        optimizer = torch.optim.SGD([point], lr=rate, momentum=momentum, nesterov=momentum > 0)
        for number in range(3):
            branches = [read(folders / f"{side}{number}")[name] for side in "ab"]
            point.grad = point.detach() - exact_mean(branches, WEIGHTS)
            optimizer.step()
            found = read(folders / f"{number}" / "merged")[name]
            assert torch.allclose(found.double(), point.detach(), rtol=1e-6, atol=1e-6)
            if momentum and number < 2:
                kept = read(folders / f"{number}" / "momentum")[name]
                assert kept.dtype == torch.float32
                assert torch.allclose(kept.double(), optimizer.state[point]["momentum_buffer"], rtol=1e-6, atol=1e-6)
    assert torch.equal(read(folders / "2" / "merged")["positions"], torch.arange(5))
    assert (folders / "0" / "momentum").is_dir() == (momentum > 0)
    assert not (folders / "2" / "momentum").exists()  # nothing comes after it


def test_a_step_of_rate_one_without_momentum_is_the_merge_to_the_bit(folders):
    rounds(folders, OuterConfig(), 1)
    merge_checkpoints([folders / "a0", folders / "b0"], WEIGHTS, {1.0: folders / "plain"}, base=folders / "base")
    plain, stepped = read(folders / "plain"), read(folders / "0" / "merged")
    assert all(torch.equal(value, stepped[name]) for name, value in plain.items())


def test_it_is_verified_and_damage_is_found(folders):
    rounds(folders, OuterConfig(rate=0.7, momentum=0.9), 3)
    for number in range(3):
        verify_merge(folders / f"{number}" / "merged")
    record = load_record(folders / "1" / "merged").result
    assert record.outer is not None
    assert (record.outer.rate, record.outer.momentum) == (0.7, 0.9)
    assert "An outer step goes there" in (folders / "1" / "merged" / "README.md").read_text()
    with pytest.raises(InputError, match="an outer step"):
        mergekit_recipe(load_record(folders / "1" / "merged"))
    file = folders / "0" / "momentum" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="this input changed since it was merged"):
        verify_merge(folders / "1" / "merged")


def test_momentum_of_another_model_is_refused_in_one_line(folders):
    write(folders / "other", {"up": torch.zeros(3)})
    outer = Outer(OuterConfig(rate=0.7, momentum=0.9), folders / "other", None)
    branches = [folders / "a0", folders / "b0"]
    with pytest.raises(InputError, match="not the momentum of this model"):
        merge_checkpoints(branches, WEIGHTS, {1.0: folders / "out"}, base=folders / "base", outer=outer)
    with pytest.raises(InputError, match="name it as base"):
        merge_checkpoints(branches, WEIGHTS, {1.0: folders / "out"}, outer=Outer(OuterConfig(rate=0.5)))
    with pytest.raises(InputError, match="running sums cannot be kept of a merge with an outer step"):
        merge_checkpoints(
            *(branches, WEIGHTS, {1.0: folders / "out"}),
            base=folders / "base",
            outer=Outer(OuterConfig(rate=0.5)),
            keep_sums=folders / "sums",
        )
    assert not (folders / "out").exists()


def test_a_momentum_beyond_float32_is_refused_in_one_line(tmp_path):
    write(tmp_path / "base", {"up": torch.full((3,), 3e38)})
    for name in ("a0", "b0"):
        write(tmp_path / name, {"up": torch.full((3,), -3e38)})
    with pytest.raises(InputError, match=r"`up`: the outer momentum is too large for float32"):
        merge_checkpoints(
            *([tmp_path / "a0", tmp_path / "b0"], WEIGHTS, {1.0: tmp_path / "out"}),
            base=tmp_path / "base",
            outer=Outer(OuterConfig(rate=0.5, momentum=0.1), None, tmp_path / "momentum"),
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "momentum").exists()


# The second round, slowed down to about a second, with small blocks and a journal that is written all the time.
SLOW = """
import sys, time
from pathlib import Path
from merit.config.sections import OuterConfig
from merit.merge import plan
from merit.merge import stream
from merit.merge.outer import Outer
from merit.merge.stream import Accumulator
from merit.merge.average import merge_checkpoints
plan.BLOCK_ELEMENTS, stream.CHUNK, stream.JOURNAL_SECONDS = 500, 250, 0.02
chunk = Accumulator.chunk
def slow(self, *args):
    time.sleep(0.015)
    yield from chunk(self, *args)
Accumulator.chunk = slow
root = Path(sys.argv[1])
outer = Outer(OuterConfig(rate=0.7, momentum=0.9), root / "0" / "momentum", root / "out" / "momentum")
(root / "out").mkdir(exist_ok=True)
print("start", flush=True)
merge_checkpoints([root / "a1", root / "b1"], [3, 1], {1.0: root / "out" / "merged"}, base=root / "base",
                  start=root / "0" / "merged", outer=outer, shard_bytes=20_000, memory_bytes=4_000_000)
"""


def test_killed_at_random_moments_it_ends_in_the_same_bytes(folders):
    rounds(folders, OuterConfig(rate=0.7, momentum=0.9), 3, shard_bytes=20_000)
    moments, kills = random.Random(3), 0
    while not (folders / "out" / "merged").exists():
        process = warm.Popen([sys.executable, "-c", SLOW, str(folders)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.15) if kills < 12 else 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 8
    for name in ("merged", "momentum"):
        one, two = (
            {file.name: sha256_file(file) for file in (folders / place / name).glob("*.safetensors")}
            for place in ("1", "out")
        )
        assert one == two
    facts = json.loads((folders / "out" / "merged" / "merit_merge.json").read_text())
    momentum = facts["result"]["checksums"]["momentum"]
    assert momentum.keys() == one.keys()
    assert damaged(folders / "out" / "momentum", momentum) == {}
