"""Verification finds a changed shard, a changed input and wrong weights; cards and recipes say what was merged."""

from __future__ import annotations

import json

import pytest
import torch
import xxhash
import yaml
from merge_folders import read, write

from merit.base.errors import InputError, StageError
from merit.base.files import sha256_file
from merit.cli.merge_command import Merging, merge_models, parse_bytes, parse_weights, verify_models
from merit.merge import plan
from merit.merge.average import merge_checkpoints, remove_branch
from merit.merge.card import write_card
from merit.merge.recipe import other_method_recipe, read_mergekit
from merit.merge.record import WeightRule, short_names
from merit.merge.verify import verify_merge


@pytest.fixture
def trio(tmp_path):
    for name in ("a", "b", "base"):
        write(tmp_path / name, {f"t{n}": torch.randn(30, 40) for n in range(3)})
    return tmp_path


def merge(root, **options):
    outputs = {1.0: root / "out", 0.5: root / "half"}
    return merge_checkpoints([root / "a", root / "b"], [3, 1], outputs, base=root / "base", **options)


def damage(folder, name="model.safetensors"):
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)


def seal(folder):
    """Records the checksum of what is there now, as one would who hides a change."""
    file = folder / "merit_merge.json"
    record = json.loads(file.read_text())
    for shard in record["result"]["checksums"]["1"]:
        record["result"]["checksums"]["1"][shard] = sha256_file(folder / shard)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "rounding": "stochastic", "seed": 5}])
def test_verify_recomputes(trio, monkeypatch, options):
    monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 400)
    merge(trio, **options)
    for name in ("out", "half"):
        result = verify_merge(trio / name, blocks=5)
        assert (result.blocks, result.parameters_recomputed, result.rounded_otherwise) == (5, 2000, 0)
    damage(trio / "out")
    with pytest.raises(InputError, match=r"model.safetensors: its bytes are not those that were merged"):
        verify_merge(trio / "out")
    seal(trio / "out")
    with pytest.raises(InputError, match=r"`t2`: element 119\d is not what its inputs give"):
        verify_merge(trio / "out", blocks=1000)


def test_verify_when_inputs_moved_or_changed(trio):
    merge(trio)
    (trio / "b").rename(trio / "moved")
    with pytest.raises(InputError, match="this input is gone"):
        verify_merge(trio / "out")
    assert verify_merge(trio / "out", inputs=[trio / "a", trio / "moved"]).blocks == 3
    damage(trio / "moved")
    with pytest.raises(InputError, match="this input changed since"):
        verify_merge(trio / "out", inputs=[trio / "a", trio / "moved"])
    with pytest.raises(InputError, match="merit did not merge this folder"):
        verify_merge(trio / "a")


def test_checksums_are_xxh3_and_older_ones_hold(trio):
    merge(trio)
    shards = json.loads((trio / "out/merit_merge.json").read_text())["result"]["checksums"]["1"]
    content = (trio / "out/model.safetensors").read_bytes()
    assert shards == {"model.safetensors": f"xxh3:{xxhash.xxh3_128(content).hexdigest()}"}
    seal(trio / "out")  # with SHA-256, as merit 0.1.0 did
    assert verify_merge(trio / "out").shards == 1
    damage(trio / "out")
    with pytest.raises(InputError, match="their checksum differs"):
        verify_merge(trio / "out")


def test_verify_of_sums_and_of_a_removed_branch(trio):
    merge_checkpoints([trio / "a", trio / "b"], [0.3, 0.1], {1.0: trio / "out"}, keep_sums=trio / "sums")
    verify_merge(trio / "sums")
    remove_branch(trio / "sums", trio / "b", {1.0: trio / "removed"})
    verify_merge(trio / "removed")


def test_card(trio):
    merge(trio, dtype="bfloat16")
    card = (trio / "half/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["merge", "merit"]
    assert "β = 0.5" in card
    assert "| a | 0.75 |" in card
    assert str(trio) not in card
    digest = json.loads((trio / "half/merit_merge.json").read_text())["result"]["checksums"]["0.5"]
    assert digest["model.safetensors"] in card
    write_card(trio / "half", title="Mine", datasets=[["gsm8k"], ["code | <x>"]])
    assert "| gsm8k |" in (trio / "half/README.md").read_text()
    assert "code \\| \\<x\\>" in (trio / "half/README.md").read_text()


def test_recipe_there_and_back(trio):
    merge(trio)
    for name, scale in (("out", 1.0), ("half", 0.5)):
        text = (trio / name / "README.md").read_text().split("```yaml")[1].split("```")[0]
        (trio / "recipe.yaml").write_text(text)
        recipe = read_mergekit(trio / "recipe.yaml")
        assert recipe.models == ("a", "b")
        assert recipe.weights == (0.75, 0.25)
        assert recipe.scale == scale
        assert recipe.base == ("base" if scale != 1 else None)


def test_other_methods_are_handed_over(tmp_path):
    (tmp_path / "ties.yaml").write_text(other_method_recipe("ties", ["a", "b"], [3, 1], "base"))
    with pytest.raises(InputError, match=r"mergekit-yaml ties.yaml OUT"):
        read_mergekit(tmp_path / "ties.yaml")
    recipe = yaml.safe_load((tmp_path / "ties.yaml").read_text())
    assert [item["parameters"]["weight"] for item in recipe["models"]] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"merge_method": "ties"},
            "`merge_method`: merit does not support the method 'ties', but mergekit",
        ),
        ({"slices": []}, "`slices`: merit does not support this"),
        ({"models": []}, "a list of models is missing"),
        ({"models": [{"model": "a", "parameters": {"weight": [1, 2]}}]}, "a value that differs by layer"),
        ({"models": [{"model": "a"}]}, r"weight`: None is not a number"),
        ({"tokenizer_source": "union"}, "building another tokenizer"),
        ({"parameters": {"normalize": False}}, "a sum of weights of 3 instead of 1"),
        ({"merge_method": "task_arithmetic"}, "`base_model`: task_arithmetic needs it"),
        ({"dtype": "int8"}, "the type 'int8'"),
    ],
)
def test_recipes_that_are_not_ours(tmp_path, change, match):
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 1), ("b", 2))]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models} | change))
    with pytest.raises(InputError, match=match):
        read_mergekit(tmp_path / "r.yaml")


def test_task_arithmetic_is_a_point_on_the_ray(trio):
    models = [{"model": str(trio / n), "parameters": {"weight": 0.5}} for n in ("a", "b")]
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(trio / "base"), "models": models,
        "parameters": {"lambda": 0.4}, "dtype": "float32",
    }  # fmt: skip
    (trio / "r.yaml").write_text(yaml.safe_dump(recipe))
    merge_models([str(trio / "r.yaml")], Merging(trio / "out"))
    a, b, base, out = (read(trio / name) for name in ("a", "b", "base", "out"))
    for name, value in out.items():
        expected = base[name] + 0.4 * (0.5 * (a[name] - base[name]) + 0.5 * (b[name] - base[name]))
        torch.testing.assert_close(value, expected)


def test_a_base_among_the_models_is_what_mergekit_makes_of_it(tmp_path):
    """It has no step from itself, so task_arithmetic leaves it and its weight out; `linear` averages it as the rest."""
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("base", 2), ("a", 1), ("b", 3))]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"parameters": {"normalize": True, "lambda": 0.5}}))
    found = read_mergekit(tmp_path / "r.yaml")
    assert (found.models, found.weights, found.scale) == (("a", "b"), (1, 3), 0.5)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"merge_method": "linear"}))
    found = read_mergekit(tmp_path / "r.yaml")
    assert (found.models, found.weights, found.scale) == (("base", "a", "b"), (2, 1, 3), 1)
    unweighted = [{"model": "base"}, *models[1:]]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"merge_method": "linear", "models": unweighted}))
    with pytest.raises(InputError, match=r"models\[0\].parameters.weight`: None is not a number"):
        read_mergekit(tmp_path / "r.yaml")


def test_command(trio, monkeypatch):
    inputs = [str(trio / "a"), str(trio / "b")]
    wanted = Merging(trio / "out", weights="3,1;t1=0,1", scale=[1.0, 0.5], base=str(trio / "base"), memory="8MB")
    lines = merge_models(inputs, wanted).lines
    assert lines[0].startswith("merged 2 inputs, 3,600 parameters in float32")
    assert [line.split(":")[0] for line in lines[3:]] == ["β = 1", "β = 0.5"]
    assert torch.equal(read(trio / "out")["t1"], read(trio / "b")["t1"])
    assert "3 random blocks (100% of the parameters)" in verify_models([str(trio / "out@0.5")], None).lines[0]
    result = merge_models(inputs, Merging(trio / "json")).record
    assert json.loads(result.model_dump_json())["weights"] == [0.5, 0.5]
    for options, match in [
        ({"output": None}, "name a folder with -o"),
        ({"weights": "1,x"}, "not numbers with commas"),
        ({"weights": "1,2;x"}, "is not PATTERN="),
        ({"memory": "lots"}, "is not a size"),
        ({"dtype": "int8"}, "is none of input, float32"),
        ({"adapter": "exact"}, "name the model that the adapters"),
    ]:
        with pytest.raises(InputError, match=match):
            merge_models(inputs, Merging(**{"output": trio / "x"} | options))


def test_url_in_and_out(trio, monkeypatch):
    monkeypatch.setenv("MERIT_CACHE", str(trio / "cache"))
    urls = [f"file://{trio}/a", f"file://{trio}/b"]
    merge_models(urls, Merging(f"file://{trio}/sent"))
    merge_models([str(trio / "a"), str(trio / "b")], Merging(trio / "local"))
    assert sha256_file(trio / "sent/model.safetensors") == sha256_file(trio / "local/model.safetensors")
    assert list((trio / "cache/outgoing").iterdir()) == []
    with pytest.raises(InputError, match="exists already"):
        merge_models(urls, Merging(f"file://{trio}/sent"))

    def lost(*_):
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", lost)
        with pytest.raises(StageError, match="sending failed"):
            merge_models(urls, Merging(f"file://{trio}/again"))
    merge_models(urls, Merging(f"file://{trio}/again"))
    assert sha256_file(trio / "again/model.safetensors") == sha256_file(trio / "local/model.safetensors")
    with pytest.raises(InputError, match="cannot be fetched"):
        merge_models([f"file://{trio}/nowhere"], Merging(trio / "x"))
    with pytest.raises(InputError, match="cannot be opened"):
        merge_models(["nosuch://x/y"], Merging(trio / "x"))


def test_small_parts():
    assert [parse_bytes(text) for text in ("512MB", "2GiB", "7", "1.5k")] == [512_000_000, 2**31, 7, 1500]
    assert parse_weights(None, ["a", "b"]) == ([1.0, 1.0], [])
    assert parse_weights("1;a=b=2", ["a"])[1] == [WeightRule(pattern="a=b", weights=[2.0])]
    hub = "/cache/models--org--steps/snapshots"
    assert short_names([f"{hub}/aaa/100", f"{hub}/aaa/200", "/x/b"]) == ["org/steps/100", "org/steps/200", "b"]
    assert short_names([f"{hub}/aaa", f"{hub}/bbb"]) == ["org/steps@aaa", "org/steps@bbb"]
    assert short_names([f"{hub}/aaa", "/x/y/b", "/x/c"]) == ["org/steps", "y/b", "c"]
