"""Checkpoints as they are published: what each loader reads of them, merit merges; what none reads, it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from merge_folders import CONFIG, read, write
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from merit.base.errors import InputError
from merit.merge.average import merge_checkpoints
from merit.merge.inputs import check_trained
from merit.merge.plan import DEFAULTS, Output, prepare_merge
from merit.models.architecture import architecture_of, is_tied
from merit.models.checkpoint import Checkpoint
from merit.plan.preflight import check_run

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def llama(folder, seed=0, **settings):
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SIZES | settings)).save_pretrained(folder)
    return folder


def edit(file, **values):
    known = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (known | values).items() if v is not ...}))


def rewrite(folder, change):
    save_file({n: t.contiguous() for n, t in change(read(folder)).items()}, folder / "model.safetensors")


def merge(inputs, out, **options):
    return merge_checkpoints(inputs, [1] * len(inputs), {1.0: out}, **options)


def refused(inputs, match, **options):
    with pytest.raises(InputError, match=match) as error:
        merge(inputs, inputs[0].parent / "refused", **options)
    assert "\n" not in str(error.value)


def mean(inputs):
    states = [read(folder) for folder in inputs]
    return {name: sum(state[name].double() for state in states).div(len(states)).float() for name in states[0]}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


# Ties


def test_a_model_is_tied_by_its_class_where_the_configuration_is_silent(tmp_path):
    sizes = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        Gemma2ForCausalLM(Gemma2Config(**sizes)).save_pretrained(tmp_path / name)
    edit(tmp_path / "a/config.json", tie_word_embeddings=...)
    assert Checkpoint.open(tmp_path / "a").tied
    inputs = [tmp_path / "a", tmp_path / "b"]
    merge(inputs, tmp_path / "out")
    same(read(tmp_path / "out"), mean(inputs))
    assert is_tied({"model_type": "gemma2"})
    assert not is_tied({"model_type": "llama"})
    assert not is_tied({"model_type": "nobody's"})


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_stored_tied_head_is_weighed_and_rounded_as_the_embeddings(tmp_path, rounding):
    from merit.merge.record import WeightRule

    inputs = [llama(tmp_path / str(k), k, tie_word_embeddings=True) for k in range(2)]
    for folder in inputs:
        rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    rules = [WeightRule(pattern="embed_tokens", weights=[1, 3])]
    merge(inputs, tmp_path / "out", rules=rules, rounding=rounding, dtype="bfloat16")
    found = read(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    rewrite(inputs[0], lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    refused(inputs[:1], "`lm_head.weight`: differs from the input embeddings")


# Names


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_names_of_wrappers_are_not_the_models(tmp_path, prefix):
    inputs = [llama(tmp_path / str(k), k) for k in range(2)]
    expected = mean(inputs)
    rewrite(inputs[0], lambda t: {prefix + name: value for name, value in t.items()})
    merge(inputs, tmp_path / "one")
    same(read(tmp_path / "one"), expected)
    rewrite(inputs[1], lambda t: {prefix + name: value for name, value in t.items()})
    merge(inputs, tmp_path / "both")
    same(read(tmp_path / "both"), expected)


def test_names_that_no_loader_reads_are_refused(tmp_path):
    a = llama(tmp_path / "a")
    rewrite(a, lambda t: {"layers.0.attention.wq.weight": t["model.layers.0.self_attn.q_proj.weight"]})
    refused([a], r"LlamaForCausalLM needs this tensor .* it has `layers.0.attention.wq.weight`")
    b = llama(tmp_path / "b")
    rewrite(b, lambda t: {f"a.{name}": value for name, value in t.items()})
    refused([b, b], "LlamaForCausalLM needs this tensor")
    flat = write(tmp_path / "flat", {"_flat_param": torch.zeros(3)})
    refused([flat], "`_flat_param`: FSDP's flat parameters")
    shell = llama(tmp_path / "shell")
    rewrite(shell, lambda t: {n: torch.empty(0) if "mlp" in n else v for n, v in t.items()})
    refused([shell, shell], "`model.layers.0.mlp.*ZeRO-3")
    small = llama(tmp_path / "small")
    edit(small / "config.json", vocab_size=64)
    refused([small], r"shape \[32, 16\], but its config.json makes it \[64, 16\]")


def test_names_without_a_prefix_and_old_buffers(tmp_path):
    """GPT-2's original file: `wte.weight` and masks beside the weights."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16)
    for seed, name in enumerate(("base", "branch")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    expected = mean([tmp_path / "branch", tmp_path / "base"])
    old = {name.removeprefix("transformer."): value for name, value in read(tmp_path / "base").items()}
    rewrite(tmp_path / "base", lambda _: old | {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()})
    check_trained(tmp_path / "base")
    result = merge_checkpoints([tmp_path / "branch"], [1], {0.5: tmp_path / "out"}, base=tmp_path / "base")
    for name, value in read(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name])
    assert any("`h.0.attn.bias` …) are left out" in note for note in result.notes)


def test_what_training_does_not_save_comes_from_the_base(tmp_path):
    base, branch = (llama(tmp_path / name, seed) for seed, name in enumerate(("base", "branch")))
    head = torch.randn(4, 4)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(base, lambda t: t | {"mtp.fc.weight": head} | buffer)
    check_trained(base)
    result = merge([branch], tmp_path / "out", base=base)
    found = read(tmp_path / "out")
    assert torch.equal(found.pop("mtp.fc.weight"), head)
    same(found, read(branch))
    assert any("`mtp.fc.weight` …) are carried over from θ0" in note for note in result.notes)


def test_what_branches_cannot_be_merged_with_is_refused_before_they_are_trained(tmp_path):
    base = llama(tmp_path / "base", tie_word_embeddings=True)
    rewrite(base, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(InputError, match="branches of this model could not be merged: differs from the input emb"):
        check_trained(base)
    check_trained(llama(tmp_path / "good"))


def test_check_says_it_before_a_run_begins(tmp_path):
    base = llama(tmp_path / "base", tie_word_embeddings=True)
    rewrite(base, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    (tmp_path / "m.yaml").write_text(
        "model: ./base\nmixture:\n  a: {path: a.jsonl}\n  b: {path: a.jsonl}\nsplit: {axes: 1}\n"
    )
    report = check_run(tmp_path / "m.yaml")
    assert not report.ok
    assert any("branches of this model could not be merged" in line for line in report.problems)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ("diagnose: {checks: [lmc]}", "diagnose.checks"),
        ("gate: {}", "gate"),
        ("", None),
    ],
)
def test_what_cannot_read_stacked_experts_is_told_before_a_run_begins(tmp_path, settings, field):
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_key_value_heads=2)).save_pretrained(
        tmp_path / "base"
    )
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    (tmp_path / "m.yaml").write_text(
        f"model: ./base\nmixture:\n  a: {{path: a.jsonl}}\n  b: {{path: a.jsonl}}\nsplit: {{axes: 1}}\n{settings}\n"
    )
    told = [line for line in check_run(tmp_path / "m.yaml").problems if "under its own name and shape" in line]
    assert [f"`{field}`" in line for line in told] == [True] * (field is not None)


def test_buffers_of_whole_numbers_are_kept_where_they_are_equal(tmp_path):
    positions = torch.arange(4).reshape(1, 4)
    inputs = [write(tmp_path / str(k), {"position_ids": positions, "w": torch.full((2,), float(k))}) for k in range(2)]
    merge(inputs, tmp_path / "out", dtype="bfloat16")
    found = read(tmp_path / "out")
    assert found["position_ids"].dtype == torch.int64
    assert torch.equal(found["position_ids"], positions)
    other = write(tmp_path / "c", {"position_ids": positions + 1, "w": torch.zeros(2)})
    refused([inputs[0], other], "`position_ids`: type I64, and not what")
    null = write(tmp_path / "null", {"w": torch.ones(2)}, config=CONFIG | {"quantization_config": None})
    merge([null], tmp_path / "plain")


# Settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_attention_heads", 4),
        ("rope_theta", 5e5),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-3),
    ],
)
def test_settings_that_change_the_function_are_refused(tmp_path, setting, value):
    inputs = [llama(tmp_path / str(k), k, head_dim=8) for k in range(2)]
    edit(inputs[1] / "config.json", **{setting: value})
    if setting.startswith("rope"):
        edit(inputs[1] / "config.json", rope_parameters=...)
    refused(inputs, "weights trained under one value compute something else")


def test_settings_that_do_not_are_told(tmp_path):
    inputs = [llama(tmp_path / str(k), k, eos_token_id=2 + k, attention_dropout=0.1 * k) for k in range(2)]
    (note,) = merge(inputs, tmp_path / "out").notes
    assert "`eos_token_id` 3 instead of 2" in note
    assert "dropout" not in note


# Everything an output depends on


def test_the_mark_covers_what_is_copied_and_how_adapters_are_scaled(tmp_path):
    folder = llama(tmp_path / "a")
    (folder / "tokenizer_config.json").write_text("{}")

    def mark():
        return prepare_merge([folder], [1], [Output(tmp_path / "out", 1.0)], DEFAULTS).mark

    before = mark()
    assert mark() == before
    (folder / "tokenizer_config.json").write_text('{"x": 1}')
    assert mark() != before


# Tokens


def tokens(folder, added, *, kind="tokenizer.json"):
    vocabulary = {"a": 0, "b": 1}
    if kind == "tokenizer.json":
        items = [{"id": number, "content": token} for token, number in added.items()]
        value = {"model": {"vocab": vocabulary}, "added_tokens": items}
        (folder / kind).write_text(json.dumps(value))
    elif kind == "added_tokens.json":
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / kind).write_text(json.dumps(added))
    else:
        texts = [*vocabulary, *added]
        pieces = [b"\x0a" + bytes([len(text)]) + text.encode() + b"\x15\x00\x00\x80\x3f" for text in texts]
        (folder / kind).write_bytes(b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in pieces))


@pytest.mark.parametrize("kind", ["tokenizer.json", "added_tokens.json", "tokenizer.model"])
def test_one_row_cannot_be_two_tokens(tmp_path, kind):
    inputs = [llama(tmp_path / str(k), k) for k in range(2)]
    for folder, token in zip(inputs, ("<think>", "<tool>"), strict=True):
        tokens(folder, {token: 2}, kind=kind)
    refused(inputs, "number 2 is token '<tool>', but '<think>' in .*mean different tokens")
    tokens(inputs[1], {"<think>": 2}, kind=kind)
    merge(inputs, tmp_path / "out")


def test_two_kinds_of_file_must_mean_one_tokenizer(tmp_path):
    inputs = [llama(tmp_path / str(k), k) for k in range(2)]
    pieces = ["<unk>", "▁the", "▁of", "▁and", "e", "t"]
    numbers = {token: number for number, token in enumerate(pieces)}

    def put(vocabulary):
        (inputs[0] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))

    entries = [b"\x0a" + bytes([len(text.encode())]) + text.encode() for text in pieces]
    (inputs[1] / "tokenizer.model").write_bytes(b"".join(b"\x0a" + bytes([len(one)]) + one for one in entries))
    put(numbers)
    merge(inputs, tmp_path / "same")
    put({token: number + 1 for token, number in numbers.items()})  # as XLM-R numbers its pieces
    merge(inputs, tmp_path / "shifted")
    put({"<unk>": 0, "Ġthe": 1, "Ġof": 2, "e": 5, "t": 4, "Ġand": 3})
    refused(inputs, r"tokenizer.model: only 1 of 6 tokens have the same number in .*tokenizer.json")


def test_a_branch_may_have_tokens_that_the_base_lacks_but_not_more_than_rows(tmp_path):
    base, branch = (llama(tmp_path / name, seed) for seed, name in enumerate(("base", "branch")))
    tokens(base, {})
    tokens(branch, {"<think>": 2})
    result = merge([branch], tmp_path / "out", base=base)
    assert any("has 1 tokens that" in note for note in result.notes)
    assert "<think>" in (tmp_path / "out/tokenizer.json").read_text()
    tokens(branch, {"<think>": 32})
    refused([branch], "token '<think>' is number 32, but the embeddings have 32 rows", base=base)
    tokens(base, {"<image>": 32})  # as Gemma 3 has it: nothing that a branch did
    tokens(branch, {"<image>": 32})
    merge([branch], tmp_path / "same", base=base)


# Side files


def test_template_and_tokenizer_come_from_one_input(tmp_path):
    a, b = (llama(tmp_path / name, seed) for seed, name in enumerate("ab"))
    (a / "tokenizer_config.json").write_text('{"chat_template": "A"}')
    (b / "tokenizer_config.json").write_text("{}")
    (b / "chat_template.jinja").write_text("B")
    (a / "processor_config.json").write_text("{}")
    (b / "preprocessor_config.json").write_text("{}")
    result = merge([a, b], tmp_path / "out")
    assert "line 1 is 'B' instead of 'A'" in result.notes[0]
    assert not (tmp_path / "out/chat_template.jinja").exists()  # it would go before A's
    assert not (tmp_path / "out/preprocessor_config.json").exists()
    assert "A" in (tmp_path / "out/tokenizer_config.json").read_text()


def test_a_tokenizer_without_a_template_gets_no_other_models(tmp_path):
    a, b = (llama(tmp_path / name, seed) for seed, name in enumerate("ab"))
    (a / "tokenizer_config.json").write_text("{}")
    (b / "chat_template.jinja").write_text("B")
    result = merge([a], tmp_path / "out", base=b)
    assert "has a chat template" in result.notes[0]
    assert not (tmp_path / "out/chat_template.jinja").exists()


def test_links_are_copied_inside_a_repository_and_refused_elsewhere(tmp_path):
    repository = tmp_path / "hub/models--org--steps"
    folder = llama(repository / "snapshots/1/checkpoint-100")
    (repository / "blobs").mkdir()
    (repository / "blobs/x").write_text('{"chat_template": "T"}')
    (folder / "tokenizer_config.json").symlink_to("../../../blobs/x")
    merge([folder], tmp_path / "out")
    assert "T" in (tmp_path / "out/tokenizer_config.json").read_text()
    linked = llama(tmp_path / "linked")
    (linked / "tokenizer_config.json").symlink_to(repository / "blobs/x")
    refused([linked], "tokenizer_config.json is a link to a file outside this folder.*cp -rL")


def test_modules_beside_the_weights(tmp_path):
    a = llama(tmp_path / "a")
    (a / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (a / "1_Pooling").mkdir()
    (a / "1_Pooling/config.json").write_text("{}")
    merge([a], tmp_path / "out")
    assert (tmp_path / "out/1_Pooling/config.json").is_file()
    shutil.copy(a / "model.safetensors", a / "1_Pooling/model.safetensors")
    refused([a], "the module 1_Pooling has weights of its own")


def test_layers_are_turned_by_their_class():
    known = architecture_of(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32).to_dict())
    assert known is not None
    assert known.transposed == {
        f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_a_configuration_of_a_billion_layers_is_not_built():
    assert architecture_of(LlamaConfig(**SIZES | {"num_hidden_layers": 3}).to_dict()) is not None
    assert architecture_of(LlamaConfig(**SIZES).to_dict() | {"num_hidden_layers": 10**9}) is None
