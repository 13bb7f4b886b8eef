"""`merit init` on the configuration of another trainer."""

from __future__ import annotations

import json

import pytest
from chat_tokenizers import make_tokenizer
from test_build_mixture import qa, write

from merit.base.errors import InputError
from merit.config import load_config
from merit.data.check import check_mixture
from merit.data.init import propose_config


def turns(n, role="role", content="content", user="user", assistant="assistant"):
    return [{role: user, content: f"q{n}"}, {role: assistant, content: f"a{n}"}]


@pytest.fixture
def project(tmp_path):
    """Data below a project, and configurations in a folder of it."""
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "configs").mkdir()
    write(data / "alpaca.jsonl", [{"instruction": f"i{n}", "input": "", "output": f"o{n}"} for n in range(40)])
    write(data / "chat.jsonl", [{"conversations": turns(n, "from", "value", "human", "gpt")} for n in range(40)])
    write(data / "own.jsonl", [{"q": f"q{n}", "a": f"a{n}", "sys": "be brief"} for n in range(40)])
    write(data / "raw.jsonl", [{"text": f"t{n}"} for n in range(40)])
    write(data / "qa.jsonl", qa(40))
    write(data / "msgs.jsonl", [{"messages": turns(n)} for n in range(40)])
    return tmp_path


def imported(project, text, name="trainer.yaml"):
    file = project / "configs" / name
    file.write_text(text)
    proposal = propose_config(file)
    (project / "configs" / "merit.yaml").write_text(proposal.text, encoding="utf-8")
    return proposal, load_config(project / "configs" / "merit.yaml")


AXOLOTL = """
base_model: org/model
revision_of_model: v2
trust_remote_code: true
chat_template: llama3
load_in_8bit: true
datasets:
  - {path: data/alpaca.jsonl, type: alpaca, shards: 3}
  - path: data/chat.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
  - path: data/own.jsonl
    type: {field_instruction: q, field_output: a, field_system: sys, format: "[INST] {instruction}"}
  - {path: data/raw.jsonl, type: completion}
  - {path: data/nowhere.jsonl, type: alpaca}
  - {path: org/set, name: main, split: "train[:10%]", type: alpaca}
  - {path: data/msgs.jsonl, type: chat_template, message_property_mappings: {role: who, content: text}}
test_datasets:
  - {path: data/qa.jsonl, type: alpaca_chat.load_qa}
val_set_size: 0.05
sequence_len: 512
num_epochs: 3
learning_rate: 2e-4
lr_scheduler: one_cycle
warmup_steps: 10
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
seed: 7
wandb_project:
"""


def test_axolotl(project):
    proposal, config = imported(project, AXOLOTL)
    assert (config.model.path, config.model.revision, config.model.trust_remote_code) == ("org/model", "v2", False)
    found = {name: (item.path, item.format, item.columns) for name, item in config.mixture.items()}
    assert found == {
        "alpaca": ("../data/alpaca.jsonl", "alpaca", {}),
        "chat": ("../data/chat.jsonl", "messages", {"messages": "conversations"}),
        "own": ("../data/own.jsonl", "alpaca", {"prompt": "q", "completion": "a", "system": "sys"}),
        "set": ("org/set", "alpaca", {}),
    }
    assert (config.mixture["set"].subset, config.mixture["set"].split) == ("main", "train[:10%]")
    assert list(config.evaluate.unseen) == ["qa"]
    train = config.train
    assert (train.epochs, train.learning_rate, train.max_length, train.schedule) == (3, 2e-4, 512, "cosine")
    assert (train.lora.r, train.lora.alpha, train.lora.dropout) == (8, 16, 0.05)
    assert train.lora.target_modules == ["q_proj", "v_proj"]
    assert (config.held_out_fraction, config.seed) == (0.05, 7)
    assert "  epochs: 3  # num_epochs\n" in proposal.text
    assert "  # raw  # left out: " in proposal.text


def test_what_axolotl_has_and_merit_has_not_is_told_by_field(project):
    proposal, _ = imported(project, AXOLOTL)
    told = "\n".join(proposal.notes)
    for text in (
        "trainer.yaml:15: `datasets[3].type`: completion is text without an answer",
        "trainer.yaml:16: `datasets[4].path`: no such file: data/nowhere.jsonl",
        "`datasets[6].message_property_mappings`: a turn has `role` and `content`",
        "not carried: datasets[0]: shards",
        "not carried: datasets[2].type: format: the chat template frames the texts here",
        "not carried: chat_template: llama3",
        "not carried: trust_remote_code",
        "not carried: lr_scheduler: ",
        "not carried: without a counterpart here: load_in_8bit, warmup_steps",
    ):
        assert text in told
    assert all(f"# {note}\n" in proposal.text for note in proposal.notes if note.startswith("not carried"))
    assert "wandb_project" not in told  # it is empty


def test_what_was_carried_passes_the_check(project):
    text = AXOLOTL.replace('  - {path: org/set, name: main, split: "train[:10%]", type: alpaca}\n', "")
    _, config = imported(project, text)
    report = check_mixture(config, project / "configs", make_tokenizer())
    assert report.ok, report.problems
    assert {item.rows for item in report.datasets} == {40}


def test_preferences_are_refused(project):
    with pytest.raises(InputError, match=r"trainer\.yaml:3: `rl`: dpo learns from preferences"):
        imported(project, "base_model: x\ndatasets: []\nrl: dpo\n")
    with pytest.raises(InputError, match=r"trainer\.yaml:3: `stage`: dpo is not supervised"):
        imported(project, "model_name_or_path: x\ndataset: a\nstage: dpo\n")


INFO = {
    "first": {"file_name": "alpaca.jsonl"},
    "named": {"file_name": "own.jsonl", "columns": {"prompt": "q", "response": "a", "system": "sys"}},
    "talk": {"file_name": "chat.jsonl", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "turns": {
        "file_name": "msgs.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "far": {"hf_hub_url": "org/far", "subset": "main", "num_samples": 50},
    "pairs": {"file_name": "pairs.json", "ranking": True},
    "cloud": {"cloud_file_name": "s3://x"},
}
LLAMA_FACTORY = """
model_name_or_path: org/model
stage: sft
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: first, named,talk,turns,far,pairs,cloud,frist
template: qwen
cutoff_len: 128
max_samples: 30
num_train_epochs: 2.0
learning_rate: 1.0e-4
lr_scheduler_type: cosine
val_size: 100
deepspeed: ds.json
"""


def test_llama_factory(project):
    (project / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    proposal, config = imported(project, LLAMA_FACTORY)
    found = {name: (item.path, item.format, item.columns, item.max_examples) for name, item in config.mixture.items()}
    assert found == {
        "first": ("../data/alpaca.jsonl", "alpaca", {}, 30),
        "named": (
            "../data/own.jsonl",
            "prompt_completion",
            {"prompt": "q", "completion": "a", "system": "sys"},
            30,
        ),
        "talk": ("../data/chat.jsonl", "sharegpt", {}, 30),
        "turns": ("../data/msgs.jsonl", "messages", {}, 30),
        "far": ("org/far", "alpaca", {}, 30),
    }
    assert config.mixture["far"].subset == "main"
    assert (config.train.lora.r, config.train.lora.alpha, config.train.lora.target_modules) == (4, 8, "all-linear")
    assert (config.train.epochs, config.train.max_length, config.held_out_fraction) == (2, 128, 0.1)
    told = "\n".join(proposal.notes)
    for text in (
        "dataset_info.json: `pairs.ranking`: ",
        "dataset_info.json: `cloud.cloud_file_name`: ",
        "`dataset`: there is no dataset 'frist'; did you mean `first`?",
        "not carried: template: qwen",
        "not carried: val_size: 100 rows",
        "not carried: without a counterpart here: deepspeed",
    ):
        assert text in told


@pytest.mark.parametrize("entry", [{"columns": ["q", "a"]}, {"formatting": "sharegpt", "tags": "from"}, {"split": [1]}])
def test_values_that_llama_factory_would_not_take(project, entry):
    info = {"bad": {"file_name": "own.jsonl", **entry}, "first": INFO["first"]}
    (project / "data" / "dataset_info.json").write_text(json.dumps(info))
    proposal, config = imported(project, "model_name_or_path: m\ndataset: bad, first\n")
    assert list(config.mixture) == ["first"]
    assert any("bad" in note or "own.jsonl" in note for note in proposal.notes)


def test_llama_factorys_list_of_datasets_alone(project):
    file = project / "data" / "dataset_info.json"
    file.write_text(json.dumps(INFO))
    config_file = project / "data" / "merit.yaml"
    config_file.write_text(propose_config(file).text)
    assert list(load_config(config_file).mixture) == ["first", "named", "talk", "turns", "far"]
    file.unlink()
    with pytest.raises(InputError, match=r"no dataset_info\.json"):
        imported(project, LLAMA_FACTORY)


@pytest.mark.parametrize("trainer", ["trl", "axolotl"])
def test_files_of_a_dataset_of_the_hub_are_not_looked_for_here(project, monkeypatch, trainer):
    """A file of the same name that happens to be here is another one."""
    monkeypatch.chdir(project / "data")
    entry = "{path: org/set, data_files: [msgs.jsonl], type: chat_template}"
    head = "model_name_or_path: m" if trainer == "trl" else "base_model: m"
    files = "{path: json, data_files: [data/msgs.jsonl], type: chat_template}"
    proposal, config = imported(project, f"{head}\ndatasets:\n  - {entry}\n  - {files}\n")
    assert [item.path for item in config.mixture.values()] == ["../data/msgs.jsonl"]
    (said,) = (note for note in proposal.notes if "data_files" in note)
    assert "`datasets[0].data_files`: merit reads whole splits of org/set from the Hub" in said


def test_trl(project):
    text = """
model_name_or_path: data/model
datasets:
  - {path: data/qa.jsonl}
  - {path: data, data_files: [chat.jsonl, msgs.jsonl], columns: [messages]}
  - {path: org/set, name: main, split: train_sft}
chat_template_path: data/chat.jinja
max_length: 256
learning_rate: 1e-4
use_peft: true
lora_r: 4
completion_only_loss: false
packing: true
"""
    (project / "data" / "model").mkdir()
    (project / "data" / "chat.jinja").write_text("{{ messages }}")
    proposal, config = imported(project, text)
    assert (config.model.path, config.model.chat_template) == ("../data/model", "../data/chat.jinja")
    assert {name: item.path for name, item in config.mixture.items()} == {
        "qa": "../data/qa.jsonl",
        "chat": "../data/chat.jsonl",
        "msgs": "../data/msgs.jsonl",
        "set": "org/set",
    }
    assert (config.mixture["set"].subset, config.mixture["set"].split) == ("main", "train_sft")
    assert (config.train.max_length, config.train.learning_rate, config.train.lora.r) == (256, 1e-4, 4)
    told = "\n".join(proposal.notes)
    for left in ("datasets[1]: columns", "completion_only_loss: false", "without a counterpart here: packing"):
        assert f"not carried: {left}" in told


def test_one_dataset_of_trl_and_its_test_split(project):
    text = "model_name_or_path: m\ndataset_name: org/set\ndataset_config: main\ndataset_test_split: test\n"
    _, config = imported(project, text)
    assert (config.mixture["set"].path, config.mixture["set"].subset) == ("org/set", "main")
    assert config.evaluate.unseen["set-test"].split == "test"


@pytest.mark.parametrize(
    ("text", "unseen"),
    [
        ("base_model: m\ndatasets: [{path: data/splits, type: alpaca_chat.load_qa}]\n", []),
        (
            "base_model: m\ndatasets: [{path: data/splits, split: train, type: alpaca_chat.load_qa}]\n"
            "test_datasets: [{path: data/splits, split: test, type: alpaca_chat.load_qa}]\n",
            ["../data/splits/test.jsonl"],
        ),
        ("model_name_or_path: m\ndataset_name: data/splits\n", []),
        ("model_name_or_path: m\ndataset_name: data/splits\ndataset_test_split: test\n", ["../data/splits/test.jsonl"]),
    ],
)
def test_the_test_split_in_a_folder_is_not_trained_on(project, text, unseen):
    folder = project / "data" / "splits"
    folder.mkdir()
    for name in ("train", "test"):
        write(folder / f"{name}.jsonl", qa(10))
    proposal, config = imported(project, text)
    assert [item.path for item in config.mixture.values()] == ["../data/splits/train.jsonl"]
    assert [item.path for item in config.evaluate.unseen.values()] == unseen
    assert "not carried: data/splits: test.jsonl: a split to evaluate, not to train on" in proposal.notes


def test_a_part_of_a_files_split_and_a_file_of_no_kind_are_told(project):
    (project / "data" / "notes.docx").touch()
    text = (
        'base_model: m\ndatasets: [{path: data/qa.jsonl, split: "train[:10%]", type: alpaca_chat.load_qa},'
        " {path: data/notes.docx, type: alpaca}]\n"
    )
    proposal, config = imported(project, text)
    assert list(config.mixture) == ["qa"]
    told = "\n".join(proposal.notes)
    assert "not carried: data/qa.jsonl: split train[:10%]: the whole of it is read" in told
    assert "notes.docx: unknown kind of file" in told


def test_lora_where_the_trainer_has_defaults_of_its_own(project):
    (project / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    _, config = imported(project, "model_name_or_path: m\ndataset: first\n")  # LLaMA-Factory's is LoRA
    assert (config.train.lora.r, config.train.lora.alpha, config.train.lora.dropout) == (8, 16, 0)
    _, config = imported(project, "model_name_or_path: m\ndataset: first\nfinetuning_type: full\n")
    assert config.train.lora is None
    text = "model_name_or_path: m\ndatasets: [{path: data/qa.jsonl}]\nuse_peft: true\n"
    proposal, config = imported(project, text)
    assert (config.train.lora.r, config.train.lora.alpha, config.train.lora.dropout) == (16, 32, 0.05)
    assert any("PEFT chooses" in note for note in proposal.notes)
    _, config = imported(project, f"{text}lora_target_modules: [all-linear]\n")
    assert config.train.lora.target_modules == "all-linear"


def test_the_published_method_has_no_adapter(project):
    file = project / "configs" / "trainer.yaml"
    file.write_text(AXOLOTL)
    proposal = propose_config(file, published=True)
    (project / "configs" / "merit.yaml").write_text(proposal.text, encoding="utf-8")
    config = load_config(project / "configs" / "merit.yaml")
    assert (config.method, config.train.lora, config.train.epochs) == ("published", None, 3)
    assert "not carried: adapter, lora_*: the published method trains all weights" in proposal.notes


def test_a_folder_in_a_dataset_of_trl(project):
    (project / "data" / "sub").mkdir()
    write(project / "data" / "sub" / "one.jsonl", qa(10))
    text = "model_name_or_path: m\ndatasets:\n  - {path: data, data_dir: sub}\n  - {path: org/set, data_dir: sub}\n"
    proposal, config = imported(project, text)
    assert [item.path for item in config.mixture.values()] == ["../data/sub/one.jsonl", "org/set"]
    assert any("datasets[1]: data_dir: sub" in note for note in proposal.notes)


def test_what_is_no_configuration_of_a_trainer(project):
    for text, told in (
        ("a: 1\n", "neither a data file nor a configuration of Axolotl, LLaMA-Factory, TRL"),
        ("mixture: {}\n", "a configuration of merit already"),
        ("base_model: [\n", "not valid YAML"),
        ("base_model: m\ndatasets: [{path: data/raw.jsonl, type: completion}]\n", "text without an answer"),
    ):
        with pytest.raises(InputError, match=told):
            imported(project, text)


def test_data_in_json_is_no_configuration(project):
    file = project / "data" / "rows.json"
    file.write_text(json.dumps(qa(40)))
    assert "rows: {path: rows.json}  # format: qa" in propose_config(file).text


@pytest.mark.parametrize(
    "values",
    [
        {"datasets": [3, {"path": 5, "type": [1]}]},
        {"datasets": [{}]},
        {"datasets": [{"path": "~nobody-of-this-name/data.jsonl", "type": "alpaca"}]},
    ],
)
def test_values_that_no_trainer_would_take(project, values):
    """One line for each, and no traceback."""
    with pytest.raises(InputError):
        imported(project, json.dumps({"base_model": ["x"], **values}))
