"""What differs between inputs beside the weights is told; a merge takes one input's."""

from __future__ import annotations

import json

import pytest
import torch
from merge_folders import CONFIG, read, write
from safetensors.torch import load_file, save_file
from test_merge_in_the_wild import SIZES, edit, llama, merge, refused, rewrite
from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from merit.merge.side_notes import base_notes


@pytest.fixture
def two(tmp_path):
    return [write(tmp_path / name, {"w": torch.full((2,), float(n))}) for n, name in enumerate("ab")]


def put(folders, name, *values):
    for folder, value in zip(folders, values, strict=True):
        if value is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def notes(two, out="out"):
    return merge(two, two[0].parent / out).notes


def test_where_generation_stops(two):
    put(two, "generation_config.json", {"eos_token_id": 2, "transformers_version": "4"}, {"eos_token_id": [2, 5]})
    (note,) = notes(two)
    assert "b/generation_config.json has `eos_token_id` [2, 5] instead of 2; the merge takes " in note
    (two[0] / "generation_config.json").unlink()
    (note,) = notes(two, "other")
    assert "a has no generation_config.json; the merge takes that of " in note
    put(two, "generation_config.json", {"eos_token_id": 2, "transformers_version": "4"}, {"eos_token_id": 2})
    assert notes(two, "third") == []


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens(two, file):
    put(two, "tokenizer.json", *[{"model": {"vocab": {"x": 0, "y": 1}}}] * 2)
    put(two, file, {"eos_token": "x", "unk_token": "x"}, {"eos_token": {"content": "y"}, "pad_token": "y"})
    (note,) = notes(two)
    assert 'has `eos_token` "y" instead of "x"; the merge takes' in note
    put(two, file, {"eos_token": "x"}, {"eos_token": {"content": "x", "lstrip": False}})
    assert notes(two, "other") == []
    put(two, "tokenizer_config.json", {"eos_token": "x", "add_bos_token": True}, {"add_bos_token": False})
    assert any("`add_bos_token` false instead of true" in note for note in notes(two, "third"))


def test_named_templates(two):
    def named(default, tool):
        return {"chat_template": [{"name": "default", "template": default}, {"name": "tool_use", "template": tool}]}

    put(two, "tokenizer_config.json", named("x", "t"), named("x", "u"))
    (note,) = notes(two)
    assert "in the template 'tool_use': line 1 is 'u' instead of 't'" in note
    put(two, "tokenizer_config.json", {"chat_template": "x"}, named("x", "u"))
    (note,) = notes(two, "other")
    assert "b has a chat template 'tool_use'" in note
    put(two, "tokenizer_config.json", {}, {})
    put(two, "chat_template.jinja", "x", "x")
    put(two, "additional_chat_templates/rag.jinja", "r", "s")
    (note,) = notes(two, "third")
    assert "rag.jinja in the template 'rag': line 1 is 's' instead of 'r'" in note


def test_processors(two):
    put(two, "preprocessor_config.json", {"size": {"edge": 224}}, {"size": {"edge": 448}})
    (note,) = notes(two)
    assert '`size` {"edge": 448} instead of {"edge": 224}' in note


def test_code_comes_from_one_input(two):
    put(two, "configuration_x.py", "a", "b")
    put(two, "modeling_x.py", None, "b")
    (note,) = notes(two)
    assert "b has other code than " in note
    assert (two[0].parent / "out/configuration_x.py").read_text() == "a"
    assert not (two[0].parent / "out/modeling_x.py").exists()


def test_labels_of_a_classifier(tmp_path):
    orders = [{0: "no", 1: "yes"}, {0: "yes", 1: "no"}, {0: "bad", 1: "good"}]
    inputs = []
    for seed, labels in enumerate(orders):
        torch.manual_seed(seed)
        LlamaForSequenceClassification(LlamaConfig(**SIZES, id2label=labels)).save_pretrained(tmp_path / str(seed))
        inputs.append(tmp_path / str(seed))
    refused(inputs[:2], "`id2label`: the labels of .* in another order: one row of the head means two labels")
    (note,) = merge([inputs[0], inputs[2]], tmp_path / "out").notes
    assert "`id2label` ['bad', 'good'] instead of ['no', 'yes']" in note


def test_one_rope_under_its_two_names(tmp_path):
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    inputs = [llama(tmp_path / str(k), k, rope_scaling={"rope_type": "llama3", **rope}) for k in range(2)]
    file = inputs[1] / "config.json"
    edit(file, rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "llama3", **rope})
    merge(inputs, tmp_path / "out")
    edit(file, rope_scaling={"type": "llama3", **rope, "factor": 4.0})
    refused(inputs, "factor`: 4.0, but 8.0")


def test_copies_of_shared_embeddings_stay_one(tmp_path):
    """T5's older files store its embeddings four times; today's once."""
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    inputs = [tmp_path / str(seed) for seed in range(2)]
    for seed, folder in enumerate(inputs):
        torch.manual_seed(seed)
        T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)
    expected = [read(folder)["shared.weight"] for folder in inputs]
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    rewrite(inputs[0], lambda t: t | {name: t["shared.weight"].clone() for name in copies})
    merge(inputs, tmp_path / "out")
    found = read(tmp_path / "out")
    assert all(torch.equal(found[name], (expected[0] + expected[1]) / 2) for name in (*copies, "shared.weight"))
    merge([inputs[1], inputs[0]], tmp_path / "other")
    assert copies[0] not in read(tmp_path / "other")
    merge(inputs[:1], tmp_path / "random", dtype="bfloat16", rounding="stochastic")
    found = read(tmp_path / "random")
    assert all(torch.equal(found[name], found["shared.weight"]) for name in copies)


def test_an_adapter_inside_a_whole_model_is_refused(tmp_path):
    names = ("q_proj.base_layer.weight", "q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight")
    inputs = [write(tmp_path / str(k), {name: torch.ones(2, 2) for name in names}) for k in range(2)]
    refused(inputs, "`q_proj.base_layer.weight`: a part of an adapter in a whole model")


def test_weights_that_are_not_there(tmp_path):
    folder = write(tmp_path / "a", {"w": torch.ones(2)}, config=CONFIG | {"compression_config": {"quant_method": "x"}})
    refused([folder], "`compression_config`: quantised with x")
    fp8 = llama(tmp_path / "fp8")
    file = fp8 / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)}, file)
    refused([fp8], "`model.norm.weight`: type F8_E4M3")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    refused([fp8], "model.safetensors: a pointer of Git LFS")


def test_adapters_of_another_base_or_revision(tmp_path):
    hub = tmp_path / "models--org--base/snapshots/aaa"
    adapters = [tmp_path / "a", tmp_path / "b"]
    for folder in adapters:
        folder.mkdir()

    def named(*values):
        for folder, (name, revision) in zip(adapters, values, strict=True):
            value = {"peft_type": "LORA", "base_model_name_or_path": name, "revision": revision}
            (folder / "adapter_config.json").write_text(json.dumps(value))

    named(("unsloth/base-bnb-4bit", None), ("org/base", "v1"))
    assert base_notes(adapters, hub) == []
    named(("org/base-instruct", None), ("org/base", "v1"))
    (note,) = base_notes(adapters, hub)
    assert "/a was trained on 'org/base-instruct', and the base is 'org/base'" in note
    named(("/disk/base", "v2"), ("org/base", "v1"))
    (note,) = base_notes(adapters, hub)
    assert "/b was trained on revision 'v1' of its base" in note
    assert "'v2'" in note
    local = write(tmp_path / "local", {"w": torch.ones(2)}, config=CONFIG | {"_name_or_path": "other/thing"})
    assert len(base_notes(adapters[1:], local)) == 1
