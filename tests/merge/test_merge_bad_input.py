"""Every bad input has its one line, naming file and tensor, and nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from merge_folders import CONFIG, read, write

from merit.base.errors import InputError
from merit.merge.average import merge_checkpoints

GOOD = {"model.embed_tokens.weight": torch.ones(6, 4), "w": torch.ones(3)}
NAN = float("nan")


@pytest.fixture
def pair(tmp_path):
    return [write(tmp_path / "a", GOOD), write(tmp_path / "b", GOOD, shards=2)]


def refused(inputs, match, *, weights=None, out=None, scale=1.0, **options):
    root = inputs[0].parent
    before = sorted(path.name for path in root.iterdir())
    with pytest.raises(InputError, match=match) as error:
        merge_checkpoints(inputs, weights or [1] * len(inputs), {scale: out or root / "out"}, **options)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in root.iterdir()) == before


def test_weights(pair):
    refused(pair, r"`weights\[1\]`: -1 is negative", weights=[1, -1])
    refused(pair, r"`weights\[0\]`: nan is not a finite number", weights=[NAN, 1])
    refused(pair, "the weights sum to 0", weights=[0, 0])
    refused(pair, "3 weights for 2 inputs", weights=[1, 1, 1])


def test_outputs(pair, tmp_path):
    refused(pair, "a: `output`: exists already", out=tmp_path / "a")
    refused(pair, "lies inside the input", out=tmp_path / "b" / "merged")
    refused(pair, "β = 0.5 needs θ0", scale=0.5)
    refused(pair, "is not a valid β", scale=-1.0, base=pair[0])
    refused(pair, "at least 4 MB", memory_bytes=1000)


def test_missing_shard_and_index(pair):
    (pair[1] / "model-00002-of-00002.safetensors").rename(pair[1] / "elsewhere")
    refused(pair, r"the shard model-00002-of-00002.safetensors is missing \(1 tensors\)")
    (pair[1] / "elsewhere").rename(pair[1] / "model-00002-of-00002.safetensors")
    index = pair[1] / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(value))
    refused(pair, "index.json: `ghost`: in the index, but not in model-00001")
    value["weight_map"]["ghost"] = "../../etc/passwd.safetensors"
    index.write_text(json.dumps(value))
    refused(pair, "which is no shard in this folder")


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"w": GOOD["w"]}, "`model.embed_tokens.weight`: missing here"),
        (GOOD | {"v": torch.ones(1)}, "c: `v`: not in "),
        (GOOD | {"w": torch.ones(4)}, r"`w`: shape \[4\], but \[3\]"),
        (
            GOOD | {"model.embed_tokens.weight": torch.ones(8, 4)},
            r"`model.embed_tokens.weight`: shape \[8, 4\], but \[6, 4\] in .*; vocabularies padded differently\?",
        ),
        (GOOD | {"w": torch.ones(3, dtype=torch.int8)}, "`w`: type I8: integer and quantised"),
        (GOOD | {"w": torch.ones(3).to(torch.float8_e4m3fn)}, "`w`: type F8_E4M3: integer and quantised"),
        (GOOD | {"w": torch.tensor([1, NAN, 2])}, "c: `w`: nan at element 1 of 3"),
        (GOOD | {"w": torch.tensor([1, 2, float("-inf")])}, "c: `w`: -inf at element 2 of 3"),
    ],
)
def test_one_branch_differs(pair, tmp_path, tensors, match):
    refused([pair[0], write(tmp_path / "c", tensors)], match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "`quantization_config`: quantised with fp8"),
        ({"model_type": "gemma"}, "`model_type`: gemma, but .* is llama"),
        ({"architectures": ["Other"]}, "`architectures`: "),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings`: True, but False"),
    ],
)
def test_another_config(pair, tmp_path, change, match):
    refused([pair[0], write(tmp_path / "c", GOOD, config=CONFIG | change)], match)


def test_no_weights_that_can_be_read(pair, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    refused([pair[0], pickled], "there is no config.json in it")
    (pickled / "config.json").write_text(json.dumps(CONFIG))
    refused([pair[0], pickled], "no .safetensors weights")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04evil")
    refused([pair[0], pickled], r"the weights are pickled \(pytorch_model.bin\)")
    refused([pair[0], tmp_path / "nowhere"], "nowhere: no such folder")


def test_too_large_for_the_type(pair, tmp_path):
    big = write(tmp_path / "big", GOOD | {"w": torch.tensor([1.0, 70000.0, 1.0])})
    refused([big], "`w`: a merged value is too large for F16", dtype="float16")


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"dtype": "float16", "rounding": "stochastic"}])
def test_what_is_not_finite_is_named(pair, tmp_path, value, options):
    bad = write(tmp_path / "bad", GOOD | {"w": torch.tensor([1, 2, value])})
    refused([*pair, bad], f"bad: `w`: {value} at element 2 of 3", weights=[1, 1, 0], **options)
    refused([*pair, bad], f"bad: `w`: {value} at element 2 of 3", base=pair[0], **options)
    refused(pair, f"bad: `w`: {value} at element 2 of 3", base=bad, **options)
    with pytest.raises(InputError, match=f"bad: `w`: {value} at element 2 of 3"):
        merge_checkpoints([pair[0], bad], [1, 1], {}, keep_sums=tmp_path / "sums")
    assert not (tmp_path / "sums").exists()


def test_sums_that_overflow(tmp_path):
    wide = [write(tmp_path / name, {"w": torch.full((3,), 1e300, dtype=torch.float64)}) for name in ("a", "b")]
    refused(wide, "`w`: the weighted sum overflows float64; use smaller weights", weights=[1e9, 1])


def test_tokenizer_that_numbers_differently(pair):
    for folder, number in zip(pair, (1, 2), strict=True):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": number}}}))
    refused(pair, "token 'b' is number 2, but 1 in .*mean different tokens")


def test_template_difference_is_shown(pair, tmp_path):
    (pair[0] / "chat_template.jinja").write_text("one\ntwo")
    (pair[1] / "chat_template.jinja").write_text("one\nthree")
    result = merge_checkpoints(pair, [1, 1], {1.0: tmp_path / "out"})
    assert "line 2 is 'three' instead of 'two'" in result.notes[0]
    assert (tmp_path / "out/chat_template.jinja").read_text() == "one\ntwo"


def test_tied_head_stored_by_one_only(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    embeddings = torch.randn(6, 4)
    plain = write(tmp_path / "plain", {"model.embed_tokens.weight": embeddings}, config=config)
    tied = {"model.embed_tokens.weight": embeddings + 1, "lm_head.weight": embeddings + 1}
    stored = write(tmp_path / "stored", tied, config=config)
    merge_checkpoints([plain, stored], [1, 1], {1.0: tmp_path / "x"})
    merge_checkpoints([stored, plain], [1, 1], {1.0: tmp_path / "y"})
    assert list(read(tmp_path / "x")) == ["model.embed_tokens.weight"]
    both = read(tmp_path / "y")
    assert torch.equal(both["lm_head.weight"], both["model.embed_tokens.weight"])
    untied = write(tmp_path / "untied", tied | {"lm_head.weight": embeddings}, config=config)
    refused([plain, untied], "`lm_head.weight`: differs from the input embeddings")


def test_layouts_of_vision_models_are_matched(tmp_path):
    old = {"language_model.model.norm.weight": torch.zeros(3), "vision_tower.vision_model.x": torch.zeros(2)}
    old["language_model.lm_head.weight"] = torch.zeros(2, 3)
    new = {"model.language_model.norm.weight": torch.ones(3), "model.vision_tower.x": torch.ones(2)}
    new["lm_head.weight"] = torch.ones(2, 3)
    inputs = [write(tmp_path / "old", old), write(tmp_path / "new", new)]
    result = merge_checkpoints(inputs, [1, 1], {1.0: tmp_path / "out"})
    assert sorted(read(tmp_path / "out")) == sorted(old)
    assert "matched by meaning" in result.notes[0]
    assert all(bool((value == 0.5).all()) for value in read(tmp_path / "out").values())
