"""Bytes and time on K machines: what a method's branches move, and what joint training on as many machines does."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.config.run import BaselineConfig
from merit.context import Method
from merit.evaluate import step
from merit.run.layout import MethodDir
from merit.split.partition import Group, Partition
from merit.train.spec import BranchResult

SIZE = 100  # bytes of a checkpoint


def method(root: Path, groups: int) -> Method:
    folder = MethodDir(root)
    names = [Group(datasets=[f"set{k}"], tokens=1) for k in range(groups)]
    Partition(splitter="random", groups=names, scores={}, cuts=[]).save(folder.partition)
    for k in range(groups):
        folder.branch(k).checkpoint.mkdir(parents=True)
        (folder.branch(k).checkpoint / "model.safetensors").write_bytes(bytes(SIZE))
    return Method("random", folder, BaselineConfig(splitter="random"))


def result(seconds: float, steps: int) -> BranchResult:
    return BranchResult(
        fingerprint="", supervised_tokens=1, examples=1, steps=steps, seconds=seconds, final_loss=1.0, files={}
    )


@pytest.mark.parametrize(
    ("groups", "merged", "wanted"),
    [
        (2, {0: result(6.0, 3), 1: result(8.0, 5)}, (2 * SIZE, 8.0)),
        (1, {0: result(8.0, 5)}, (2 * SIZE * 5, 4.0)),  # joint training
        (2, {1: result(8.0, 5)}, (0, 8.0)),  # the other branch was not done: nothing to exchange, and nothing to share
        (2, {0: result(0.0, 0), 1: result(8.0, 5)}, (None, None)),  # another trainer made one
    ],
)
def test_what_moves_and_how_long_it_takes(tmp_path, groups, merged, wanted):
    assert step._apart(method(tmp_path, groups), merged, 2) == wanted
