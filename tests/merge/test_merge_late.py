"""Partial merges, late branches through running sums, and weights by pattern."""

from __future__ import annotations

import pytest
import torch
from merge_folders import bits, exact_mean, read, write

from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.base.kept import damaged
from merit.config.sections import OuterConfig
from merit.merge.average import add_branch, merge_checkpoints, remove_branch
from merit.merge.outer import Outer
from merit.merge.plan import MergeOptions
from merit.merge.record import WeightRule
from merit.models.checkpoint import read_header


@pytest.fixture
def three(tmp_path):
    for kind in ("float32", "bfloat16"):
        for n in range(3):
            tensors = {"model.a": torch.randn(50, 40), "model.b": torch.randn(70)}
            write(tmp_path / kind / str(n), {name: t.to(getattr(torch, kind)) for name, t in tensors.items()})
    return tmp_path


def weights_of(folder):
    return sha256_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [[1003, 77, 5], [3, 3, 3], [0.3, 0.3, 0.1]])
def test_a_late_branch_gives_the_bytes_of_merging_all(three, kind, tokens):
    root = three / kind
    branches = [root / str(n) for n in range(3)]
    merge_checkpoints(branches, tokens, {1.0: root / "all"})
    merge_checkpoints(branches[:2], tokens[:2], {1.0: root / "two"}, keep_sums=root / "sums")
    result = add_branch(root / "sums", branches[2], tokens[2], {1.0: root / "added"}, keep_sums=root / "sums3")
    assert weights_of(root / "added") == weights_of(root / "all")
    assert result.weights == pytest.approx([token / sum(tokens) for token in tokens])
    result = remove_branch(root / "sums3", branches[2], {1.0: root / "removed"})
    if isinstance(tokens[0], int):
        assert weights_of(root / "removed") == weights_of(root / "two")
    for name, tensor in read(root / "two").items():  # at most one step of the type away, where a tie fell otherwise
        steps = tensor.view(torch.int16 if kind == "bfloat16" else torch.int32).int()
        found = read(root / "removed")[name].view(torch.int16 if kind == "bfloat16" else torch.int32).int()
        assert int((steps - found).abs().max()) <= 1
    assert [item.factor for item in result.inputs] == tokens[:2]
    with pytest.raises(InputError, match="none of the branches in"):
        remove_branch(root / "sums", branches[2], {1.0: root / "x"})
    with pytest.raises(InputError, match="not its running sums"):
        add_branch(root / "two", branches[2], 1, {1.0: root / "x"})


MIXED = {"first": torch.bfloat16, "second": torch.float32, "third": torch.bfloat16, "fourth": torch.float32}


def test_of_mixed_types_every_output_lies_as_the_merge_does(tmp_path):
    """What is hashed while others are written must be written itself."""
    for n in range(3):  # a tensor a shard: so their order is that of the names here
        write(tmp_path / str(n), {name: torch.randn(300, 70).to(dtype) for name, dtype in MIXED.items()}, shards=4)
    base, *two = (tmp_path / str(n) for n in range(3))
    summed = merge_checkpoints(two, [1, 2], {1.0: tmp_path / "out"}, keep_sums=tmp_path / "sums", shard_bytes=100_000)
    outer = Outer(OuterConfig(rate=0.7, momentum=0.9), None, tmp_path / "momentum")
    stepped = merge_checkpoints(two, [1, 2], {1.0: tmp_path / "stepped"}, base=base, outer=outer)
    for result, names in ((summed, ("out", "sums")), (stepped, ("stepped", "momentum"))):
        for name, sums in zip(names, result.checksums.values(), strict=True):
            files = sorted((tmp_path / name).glob("*.safetensors"))
            order = [info.name for file in files for info in read_header(file)]
            assert order == ["second", "fourth", "first", "third"]
            assert damaged(tmp_path / name, sums) == {}
    merge_checkpoints([*two, base], [1, 2, 3], {1.0: tmp_path / "all"}, shard_bytes=100_000)
    add_branch(tmp_path / "sums", base, 3, {1.0: tmp_path / "added"}, options=MergeOptions(shard_bytes=100_000))
    shards = sorted(file.name for file in (tmp_path / "all").glob("*.safetensors"))
    assert len(shards) > 1
    for name in shards:
        assert sha256_file(tmp_path / "all" / name) == sha256_file(tmp_path / "added" / name)


def test_partial(three):
    root = three / "float32"
    inputs = [root / "0", root / "lost", root / "2"]
    with pytest.raises(InputError, match="lost: no such folder"):
        merge_checkpoints(inputs, [1, 2, 3], {1.0: root / "x"})
    result = merge_checkpoints(inputs, [1, 2, 3], {1.0: root / "x"}, partial=True)
    assert result.weights == [0.25, 0.75]
    assert result.notes[-1] == "partial: 1 of 3 inputs were missing (lost); weights renormalised"


def test_rules(three):
    root = three / "float32"
    inputs = [root / "0", root / "1"]
    rules = [WeightRule(pattern=r"\.b$", weights=[0, 1])]
    merge_checkpoints(inputs, [1, 3], {1.0: root / "x"}, rules=rules)
    merged = read(root / "x")
    a, b = (read(path) for path in inputs)
    assert bits(merged["model.a"]) == bits(exact_mean([a["model.a"], b["model.a"]], [1, 3]).float())
    assert bits(merged["model.b"]) == bits(b["model.b"])
    for pattern, match in [("(", "not a regular expression"), ("none", "no tensor matches")]:
        with pytest.raises(InputError, match=match):
            merge_checkpoints(inputs, [1, 3], {1.0: root / "y"}, rules=[WeightRule(pattern=pattern, weights=[1, 1])])
