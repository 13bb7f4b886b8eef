"""LoRA: updates are averaged, never factors. PEFT's own merge of each adapter is the reference."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from merge_folders import read, write
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.cli.merge_command import Merging, merge_models, verify_models
from merit.config.sections import ModelConfig
from merit.merge.average import merge_checkpoints
from merit.merge.lora import merge_adapters, read_rows
from merit.merge.plan import DEFAULTS, Output, prepare_merge
from merit.models.adapter import Adapter
from merit.models.checkpoint import Checkpoint, FilePool
from merit.models.source import locate_model

LLAMA = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
    tie_word_embeddings=False,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
KINDS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
    },
    "whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "o_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
}  # fmt: skip


def base_and_adapters(root, kinds, model):
    """Saves θ0 and one random adapter a kind; returns PEFT's own merged weights of each."""
    model.save_pretrained(root / "base")
    merged = []
    for number, kind in enumerate(kinds):
        tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**kind))
        for name, value in tuned.named_parameters():
            if value.requires_grad:
                torch.nn.init.normal_(value, std=0.05) if "magnitude" not in name else value.data.mul_(1.1)
        tuned.save_pretrained(root / f"adapter{number}")
        merged.append(tuned.merge_and_unload().state_dict())
    return merged


def close(found, expected):
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].float(), rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("memory", [512_000_000, 2_300_000])
def test_whole_model_from_adapters(tmp_path, kind, memory):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS[kind], KINDS["plain"]], LlamaForCausalLM(LLAMA))
    adapters = [tmp_path / "adapter0", tmp_path / "adapter1"]
    result = merge_checkpoints(adapters, [3, 1], {1.0: tmp_path / "out"}, base=tmp_path / "base", memory_bytes=memory)
    close(read(tmp_path / "out"), {name: 0.75 * merged[0][name] + 0.25 * merged[1][name] for name in merged[0]})
    start = read(tmp_path / "base")
    moved = sum(float((merged[0][name].double() - start[name].double()).square().sum()) for name in start)
    assert result.branch_displacement[0] == pytest.approx(moved**0.5, rel=1e-4)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight.shape == (64, 32)


def test_conv1d_is_transposed(tmp_path):
    torch.manual_seed(0)
    kind = {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    merged = base_and_adapters(tmp_path, [kind], GPT2LMHeadModel(GPT2))
    merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    close(read(tmp_path / "out"), merged[0])


def test_adapter_beside_a_whole_checkpoint(tmp_path):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    other = LlamaForCausalLM(LLAMA)
    other.save_pretrained(tmp_path / "other")
    merge_checkpoints(
        [tmp_path / "adapter0", tmp_path / "other"], [1, 1], {1.0: tmp_path / "out"}, base=tmp_path / "base"
    )
    close(read(tmp_path / "out"), {n: (merged[0][n] + other.state_dict()[n]) / 2 for n in merged[0]})


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "embedding"])
def test_stacked_adapter_is_exact_and_loads_in_peft(tmp_path, kind):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA)
    merged = base_and_adapters(tmp_path, [KINDS[kind], KINDS["plain"]], model)
    adapters = [tmp_path / "adapter0", tmp_path / "adapter1"]
    result = merge_adapters(adapters, [3, 1], tmp_path / "out", base=tmp_path / "base")
    assert result.truncation_error == 0
    if kind == "plain":
        assert set(result.ranks.values()) == {8}
    found = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").merge_and_unload().state_dict()
    close(found, {name: 0.75 * merged[0][name] + 0.25 * merged[1][name] for name in merged[0]})


def test_truncated_adapter_has_the_least_error_and_tells_it(tmp_path):
    torch.manual_seed(0)
    base_and_adapters(tmp_path, [KINDS["plain"]] * 3, LlamaForCausalLM(LLAMA))
    adapters = [tmp_path / f"adapter{n}" for n in range(3)]
    base = tmp_path / "base"
    exact = merge_adapters(adapters, [1, 1, 1], tmp_path / "exact", base=base)
    cut = merge_adapters(adapters, [1, 1, 1], tmp_path / "cut", base=base, rank=5)
    assert set(cut.ranks.values()) == {5}
    deltas = [updates(tmp_path / name, base) for name in ("exact", "cut")]
    lost = sum(float((deltas[0][n] - deltas[1][n]).square().sum()) for n in deltas[0])
    best = sum(float(torch.linalg.svdvals(delta)[5:].square().sum()) for delta in deltas[0].values())
    assert lost == pytest.approx(best, rel=1e-4)
    assert cut.truncation_error == pytest.approx(best**0.5 / exact.update_norm, rel=1e-5)
    assert cut.worst_module in cut.ranks


def updates(path, base):
    """Each module's update, scale · B A."""
    adapter = Adapter.open(path, Checkpoint.open(base))
    with FilePool() as files:
        return {
            name: torch.from_numpy(
                u.scale * read_rows(files, u.b, 0, u.b.shape[0]) @ read_rows(files, u.a, 0, u.a.shape[0])
            )
            for name, u in adapter.updates.items()
        }


def test_one_adapter_at_weight_one_gives_itself_back(tmp_path):
    base_and_adapters(tmp_path, [KINDS["rslora"], KINDS["plain"]], LlamaForCausalLM(LLAMA))
    merge_adapters([tmp_path / "adapter0", tmp_path / "adapter1"], [7, 0], tmp_path / "out", base=tmp_path / "base")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert sha256_file(tmp_path / "out" / name) == sha256_file(tmp_path / "adapter0" / name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "LOHA"}, "`peft_type`: adapters of type LOHA"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights`: 'pissa' changed the base"),
        ({"lora_bias": True}, "`lora_bias`: adapters with this setting"),
        ({"target_parameters": ["x"]}, "`target_parameters`: adapters with this setting"),
        ({"lora_alpha": None}, "`lora_alpha`: None is not a number"),
        ({"use_dora": True}, "`use_dora` and the magnitude vectors do not agree"),
        ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
    ],
)
def test_refused_by_name(tmp_path, change, match):
    base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    file = tmp_path / "adapter0/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=match):
        merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    assert not (tmp_path / "out").exists()


def test_adapters_that_cannot_be(tmp_path):
    base_and_adapters(tmp_path, [KINDS["dora"], KINDS["plain"]], LlamaForCausalLM(LLAMA))
    base = tmp_path / "base"
    with pytest.raises(InputError, match="DoRA: its update is no low-rank matrix"):
        merge_adapters([tmp_path / "adapter0"], [1], tmp_path / "out", base=base)
    with pytest.raises(InputError, match="an adapter cannot be the base"):
        merge_checkpoints([base], [1], {1.0: tmp_path / "out"}, base=tmp_path / "adapter1")
    with pytest.raises(InputError, match="an adapter, trained on"):
        merge_checkpoints([tmp_path / "adapter1"], [1], {1.0: tmp_path / "out"})
    small = LlamaConfig(**LLAMA.to_dict() | {"hidden_size": 16})
    LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match=r"the update is \[32, 32\], but .* is \[16, 16\]|the update is"):
        merge_checkpoints([tmp_path / "adapter1"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "small")
    tied = LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True})
    base_and_adapters(tmp_path / "tied", [KINDS["embedding"]], LlamaForCausalLM(tied))
    with pytest.raises(InputError, match="is tied to the other end"):
        merge_checkpoints([tmp_path / "tied/adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "tied/base")


def test_adapters_by_hub_id(tmp_path, monkeypatch):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS["plain"], KINDS["plain"]], LlamaForCausalLM(LLAMA))
    asked = []

    def download(name, **_):
        asked.append(name)
        return str(tmp_path / name.removeprefix("org/"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    merge_models(["org/adapter0", "org/adapter1"], Merging(tmp_path / "out", weights="1,1", base="org/base"))
    assert asked == ["org/adapter0", "org/adapter1", "org/base"]
    close(read(tmp_path / "out"), {name: (merged[0][name] + merged[1][name]) / 2 for name in merged[0]})


def lora(root, name, model, **kind):
    """A random adapter of `model`, saved; returns PEFT's own merged weights."""
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**kind))
    for value in tuned.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value, std=0.05)
    tuned.save_pretrained(root / name)
    return tuned.merge_and_unload().state_dict()


@pytest.mark.parametrize("modules", [["attn.c_proj"], ["attn.c_proj", "lm_head"], ["c_attn", "c_fc", "lm_head"]])
@pytest.mark.parametrize("flag", [True, False])
def test_conv1d_beside_linear_layers_is_told_by_its_class(tmp_path, modules, flag):
    """A square matrix fits either way, and PEFT saves one flag for all layers, whatever it did with each."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**GPT2.to_dict() | {"tie_word_embeddings": False}))
    model.save_pretrained(tmp_path / "base")
    merged = lora(tmp_path, "a", model, r=4, target_modules=modules)
    file = tmp_path / "a/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": flag}))
    merge_checkpoints([tmp_path / "a"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    close(read(tmp_path / "out"), merged)


def test_embeddings_that_are_tied_by_the_models_class(tmp_path):
    config = Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base/config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "tie_word_embeddings"}))
    lora(tmp_path, "a", model, r=2, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(InputError, match="is tied to the other end of the model"):
        merge_checkpoints([tmp_path / "a"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    # Embeddings that PEFT saved and nobody trained change nothing.
    merged = lora(tmp_path, "b", model, r=2, target_modules=["q_proj"])
    weights = tmp_path / "b/adapter_model.safetensors"
    whole = load_file(weights) | {"base_model.model.model.embed_tokens.weight": model.get_input_embeddings().weight}
    save_file({name: value.detach().clone() for name, value in whole.items()}, weights)
    merge_checkpoints([tmp_path / "b"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    close(read(tmp_path / "out"), merged)


def test_both_ends_of_a_tied_model_trained_together(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True}))
    model.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True))
    for value in tuned.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value, std=0.05)
    tuned.save_pretrained(tmp_path / "a")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = tuned(ids).logits
        merge_checkpoints([tmp_path / "a"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
        torch.testing.assert_close(LlamaForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, expected)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.model."),
        lambda name: name.replace(".lora_", ".weight.lora_"),  # adapters that were extracted from two models
        lambda name: name.replace("model.layers.", "model.language_model.layers."),  # of the vision generation
    ],
)
def test_names_as_other_trainers_write_them(tmp_path, spelled):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    weights = tmp_path / "adapter0/adapter_model.safetensors"
    save_file({spelled(name): value for name, value in load_file(weights).items()}, weights)
    merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    close(read(tmp_path / "out"), merged[0])


def test_a_text_adapter_of_a_model_in_its_vision_generations_file(tmp_path):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    config = {"model_type": "nobody's", "architectures": ["Both"]}
    whole = {n.replace("model.", "model.language_model.", 1): v for n, v in read(tmp_path / "base").items()}
    write(tmp_path / "both", whole | {"model.vision_tower.x": torch.ones(2)}, config=config)
    merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "both")
    found = {n.replace("language_model.", ""): v for n, v in read(tmp_path / "out").items() if "vision" not in n}
    close(found, merged[0])


def test_a_changed_alpha_is_another_merge(tmp_path):
    base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    options = replace(DEFAULTS, base=tmp_path / "base")

    def mark():
        return prepare_merge([tmp_path / "adapter0"], [1], [Output(tmp_path / "out", 1.0)], options).mark

    before = mark()
    file = tmp_path / "adapter0/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    assert mark() != before


def test_adapters_of_two_models_are_refused(tmp_path):
    base_and_adapters(tmp_path, [KINDS["plain"]] * 2, LlamaForCausalLM(LLAMA))
    paths = [tmp_path / f"adapter{n}" for n in range(2)]

    def name(*names):
        for path, value in zip(paths, names, strict=True):
            file = path / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": value}))

    name("org/base", "org/base-Instruct")
    with pytest.raises(InputError, match=r"`base_model_name_or_path`: 'org/base-Instruct', but .*'org/base'"):
        merge_checkpoints(paths, [1, 1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    with pytest.raises(InputError, match="`base_model_name_or_path`"):
        merge_adapters(paths, [1, 1], tmp_path / "out", base=tmp_path / "base")
    name("org/base", "unsloth/base-bnb-4bit")
    result = merge_checkpoints(paths, [1, 1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    assert any("merged as adapters of one model" in note for note in result.notes)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_merged_adapter_has_a_tokenizer_and_can_be_verified(tmp_path, rank):
    torch.manual_seed(0)
    base_and_adapters(tmp_path, [KINDS["plain"]] * 2, LlamaForCausalLM(LLAMA))
    (tmp_path / "base/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (tmp_path / "base/chat_template.jinja").write_text("T")
    paths, out = [tmp_path / f"adapter{n}" for n in range(2)], tmp_path / "out"
    merge_adapters(paths, [3, 1], out, base=tmp_path / "base", rank=rank)
    assert (out / "chat_template.jinja").read_text() == "T"
    assert (out / "tokenizer.json").is_file()
    assert "1 shards have their recorded checksum" in verify_models([str(out)], None).lines[0]
    file = paths[0] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(InputError, match="adapter0: this input changed"):
        verify_models([str(out)], None)


def test_a_revision_and_a_folder_of_a_hub_repository(tmp_path, monkeypatch):
    (tmp_path / "steps/checkpoint-100").mkdir(parents=True)
    asked = []

    def download(name, *, revision, **_):
        asked.append((name, revision))
        return str(tmp_path / "steps")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = locate_model(ModelConfig(path="org/steps/checkpoint-100"), tmp_path)
    assert found == tmp_path / "steps/checkpoint-100"
    assert locate_model(ModelConfig(path="org/steps@v2"), tmp_path) == tmp_path / "steps"
    assert asked == [("org/steps", None), ("org/steps", "v2")]
    with pytest.raises(InputError, match="org/steps has no folder 'nowhere'"):
        locate_model(ModelConfig(path="org/steps/nowhere"), tmp_path)


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def keep(folder, wanted):
    file = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if wanted(name)}, file)


def test_a_rank_that_the_configuration_does_not_state_is_refused(tmp_path):
    """PEFT would not load it; α / r of the file would be another scale than the one of training."""
    base_and_adapters(tmp_path, [KINDS["plain"]], LlamaForCausalLM(LLAMA))
    adapter, options = tmp_path / "adapter0", {"base": tmp_path / "base"}
    edit(adapter / "adapter_config.json", r=8)
    with pytest.raises(InputError, match=r"adapter_config.json: `r`: 8, but the factors of .* have rank 4"):
        merge_checkpoints([adapter], [1], {1.0: tmp_path / "out"}, **options)
    edit(adapter / "adapter_config.json", rank_pattern={"q_proj": 4, "down_proj": 4})
    merge_checkpoints([adapter], [1], {1.0: tmp_path / "out"}, **options)


def test_what_an_adapter_should_hold_and_does_not_is_told(tmp_path):
    torch.manual_seed(0)
    kind = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]}
    base_and_adapters(tmp_path, [kind, kind], LlamaForCausalLM(LLAMA))
    paths, base = [tmp_path / f"adapter{n}" for n in range(2)], tmp_path / "base"
    result = merge_checkpoints(paths, [1, 1], {1.0: tmp_path / "whole"}, base=base)
    assert result.notes == []
    keep(paths[0], lambda name: "layers.1." not in name)
    keep(paths[1], lambda name: "lm_head" not in name)
    for notes in (
        merge_checkpoints(paths, [1, 1], {1.0: tmp_path / "out"}, base=base).notes,
        merge_adapters(paths, [1, 1], tmp_path / "adapter", base=base).notes,
    ):
        layers, head = notes
        assert "adapter0: 2 of the 4 layers that `target_modules` names have no update" in layers
        assert "`model.layers.1." in layers
        assert "adapter1: `modules_to_save` names lm_head, but adapter_model.safetensors lacks it" in head


def test_an_adapter_that_was_not_trained_is_told(tmp_path):
    model = LlamaForCausalLM(LLAMA)
    model.save_pretrained(tmp_path / "base")
    get_peft_model(copy.deepcopy(model), LoraConfig(**KINDS["plain"])).save_pretrained(tmp_path / "a")
    (note,) = merge_checkpoints([tmp_path / "a"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base").notes
    assert note.endswith("/a equals θ0: it was not trained, or its training was not saved")
    (note,) = merge_adapters([tmp_path / "a"], [1], tmp_path / "adapter", base=tmp_path / "base").notes
    assert note.startswith("the average of all updates is zero")


def test_a_vocabulary_that_grew_and_a_folder_that_is_both(tmp_path):
    model = LlamaForCausalLM(LLAMA)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(70, mean_resizing=False)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    tuned.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match=r"shape \[70, 32\], but \[64, 32\] in the base; its vocabulary was resized"):
        merge_checkpoints([tmp_path / "a"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "base")
    (tmp_path / "base/adapter_config.json").write_bytes((tmp_path / "a/adapter_config.json").read_bytes())
    with pytest.raises(InputError, match=r"an adapter, and beside it model\.safetensors, which would not be read"):
        Adapter.open(tmp_path / "base", Checkpoint.open(tmp_path / "base"))
    (tmp_path / "outer/sft").mkdir(parents=True)
    (tmp_path / "outer/sft/adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no config.json in it; did you mean sft in it\?"):
        merge_checkpoints([tmp_path / "outer"], [1], {1.0: tmp_path / "out"})
    save_file({}, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(InputError, match="no tensors in it: DeepSpeed"):
        Adapter.open(tmp_path / "a", Checkpoint.open(tmp_path / "base"))


def test_vision_language_names_of_both_generations(tmp_path):
    torch.manual_seed(0)
    merged = base_and_adapters(tmp_path, [KINDS["whole"]], LlamaForCausalLM(LLAMA))
    config = {"model_type": "nobody's", "architectures": ["Both"]}
    whole = {n.replace("model.", "model.language_model.", 1): v for n, v in read(tmp_path / "base").items()}
    write(tmp_path / "both", whole | {"model.vision_tower.x": torch.ones(2)}, config=config)
    weights = tmp_path / "adapter0/adapter_model.safetensors"
    old = {n.replace("base_model.model.", "base_model.model.language_model."): v for n, v in load_file(weights).items()}
    save_file(old, weights)
    merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=tmp_path / "both")
    found = {n.replace("language_model.", ""): v for n, v in read(tmp_path / "out").items() if "vision" not in n}
    close(found, merged[0])


def test_ends_of_a_model_are_told_by_its_class(tmp_path):
    """Mamba ties `backbone.embeddings`: an update of the embeddings alone would change the head, too."""
    kind = {"r": 2, "target_modules": ["in_proj", "x_proj"]}
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    merged = base_and_adapters(tmp_path, [kind, kind | {"target_modules": ["embeddings"]}], model)
    base = tmp_path / "base"
    assert Checkpoint.open(base).embedding == "backbone.embeddings.weight"
    assert Checkpoint.open(base).head is None
    merge_checkpoints([tmp_path / "adapter0"], [1], {1.0: tmp_path / "out"}, base=base)
    close(read(tmp_path / "out"), merged[0])
    with pytest.raises(InputError, match=r"backbone.embeddings.weight is tied to the other end"):
        merge_checkpoints([tmp_path / "adapter1"], [1], {1.0: tmp_path / "wrong"}, base=base)


def test_a_start_that_is_not_the_base_is_refused(tmp_path):
    """Half of the arithmetic would take the adapter for a step from it."""
    base_and_adapters(tmp_path, [KINDS["plain"], KINDS["plain"]], LlamaForCausalLM(LLAMA))
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "start")
    adapters = [tmp_path / "adapter0", tmp_path / "adapter1"]
    with pytest.raises(InputError, match=r"adapter0: an adapter is a step from its base"):
        merge_checkpoints(
            *(adapters, [1, 1], {1.0: tmp_path / "out"}),
            base=tmp_path / "base",
            start=tmp_path / "start",
            rule="actmat",
        )
