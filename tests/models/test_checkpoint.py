"""Headers are not trusted: each damage has its line, and reading gives what safetensors gives."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from merit.base.errors import InputError
from merit.models.checkpoint import Checkpoint, read_header
from merit.models.source import check_model_folder


def header(file, value, *, data=b"", length=None):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("value", "options", "match"),
    [
        ({}, {"length": 10**12}, "not a whole safetensors file"),
        (b"{", {}, "damaged header"),
        (b"[]", {}, "not a JSON object"),
        (b"[" * 100_000, {}, "damaged header"),
        (b'{"a": 1, "a": 2}', {}, "a name appears twice"),
        ({"w": 3}, {}, "`w`: damaged header: dtype, shape or data_offsets is missing"),
        ({"w": entry("F31")}, {}, "unknown type 'F31'"),
        ({"w": entry("I16")}, {}, "`w`: type I16: integer and quantised"),
        ({"w": entry(shape=(-2,))}, {"data": bytes(8)}, "not made of sizes"),
        ({"w": entry(shape=(2.0,))}, {"data": bytes(8)}, "not made of sizes"),
        ({"w": entry(shape=(True, 2))}, {"data": bytes(8)}, "not made of sizes"),
        ({"w": entry(shape=(3,))}, {"data": bytes(8)}, r"F32 \[3\] is 12 bytes, but its offsets span 8"),
        ({"w": entry()}, {"data": bytes(5)}, "truncated: the header describes"),
        ({"w": entry()}, {"data": bytes(9)}, "damaged: the header describes"),
        ({"w": entry(offsets=(4, 12))}, {"data": bytes(12)}, "overlap or leave a gap"),
        ({"v": entry(), "w": entry(offsets=(4, 12))}, {"data": bytes(12)}, "overlap or leave a gap"),
        ({"w": entry(shape=(2**61, 2**61))}, {"data": bytes(8)}, "offsets span 8"),
    ],
)
def test_damaged_headers(tmp_path, value, options, match):
    file = header(tmp_path / "x.safetensors", value, **options)
    with pytest.raises(InputError, match=match) as error:
        read_header(file)
    assert str(file) in str(error.value)


def test_names_cannot_drive_a_terminal(tmp_path):
    file = header(tmp_path / "x.safetensors", {"\x1b[2J\nw": entry("I8")})
    with pytest.raises(InputError) as error:
        read_header(file)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def test_reads_what_was_saved(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 2, 2).half(),
        "d": torch.tensor(1.5, dtype=torch.float64),
        "e": torch.empty(0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tied
    assert checkpoint.elements == sum(tensor.numel() for tensor in tensors.values())
    for name, tensor in tensors.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    with pytest.raises(InputError, match=re.escape("`f`: no such tensor")):
        checkpoint.tensor("f")


def test_shards_without_an_index(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for number in range(2):
        save_file({f"w{number}": torch.ones(2)}, tmp_path / f"part{number}.safetensors")
    with pytest.raises(InputError, match=r"2 safetensors files, but no model.safetensors.index.json"):
        Checkpoint.open(tmp_path)


def test_tensor_in_a_shard_that_the_index_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.ones(2), "v": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    with pytest.raises(InputError, match=r"`v`: in a.safetensors, but the index does not list it"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([], "not a safetensors index"),
        ({"weight_map": {"w": 1}}, "not a safetensors index"),
        ({"weight_map": {"w": "../a.safetensors"}}, "names '../a.safetensors', which is no shard in this folder"),
        ({"weight_map": {"w": "b.safetensors"}}, r"the shard b.safetensors is missing \(1 tensors\)"),
    ],
)
def test_an_index_is_judged_alike_whoever_reads_it(tmp_path, index, expected):
    """θ0 is checked before it is loaded, and a checkpoint when it is opened to be merged."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "a.safetensors").touch()
    said = []
    for read in (Checkpoint.open, lambda path: check_model_folder(path, trust_remote_code=False)):
        with pytest.raises(InputError, match=expected) as caught:
            read(tmp_path)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "`weight_map`" in said[0]
