"""Bytes and time on K machines: what a method's branches move, and what joint training on as many machines does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from merit.config.run import BaselineConfig
from merit.context import Method
from merit.evaluate.effort import Effort, effort_apart
from merit.merge.step import MethodMerge
from merit.run.layout import MethodDir
from merit.split.partition import Group, Partition
from merit.train.spec import BranchResult

SIZE = 100  # bytes of a checkpoint


def method(root: Path, groups: int, merged: dict[int, BranchResult]) -> Method:
    folder = MethodDir(root)
    names = [Group(datasets=[f"set{k}"], tokens=1) for k in range(groups)]
    Partition(splitter="random", groups=names, scores={}, cuts=[]).save(folder.partition)
    for k in range(groups):
        folder.branch(k).checkpoint.mkdir(parents=True)
        (folder.branch(k).checkpoint / "model.safetensors").write_bytes(bytes(SIZE))
    for k, done in merged.items():
        done.save(folder.branch(k).done)
    MethodMerge(
        fingerprint="",
        weights=[1.0] * len(merged),
        supervised_tokens=[1] * len(merged),
        left_out=[k for k in range(groups) if k not in merged],
        displacement={},
        branch_displacement=[],
        rounding_error={},
        seconds=0.0,
    ).save(folder.merge_record)
    return Method(root.name, folder, BaselineConfig(splitter="random"))


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
def test_what_moves_and_how_long_it_takes(
    tmp_path: Path, groups: int, merged: dict[int, BranchResult], wanted: tuple[int | None, float | None]
) -> None:
    main = method(tmp_path / "merit", 2, {0: result(1.0, 1), 1: result(1.0, 1)})
    other = method(tmp_path / "other", groups, merged)
    run = SimpleNamespace(conflict=tmp_path / "conflict.json")  # not measured
    context = cast(Any, SimpleNamespace(run=run, methods=[main, other]))
    assert effort_apart(context, other) == Effort(*wanted)
