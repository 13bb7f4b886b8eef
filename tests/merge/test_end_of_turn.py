"""A base model whose end token is not the one that ends a turn of its chat template: it stops at both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cli.command import Command
from merit.evaluate.answers import greedy_answers
from merit.merge.step import _stop_at
from merit.models.loading import load_model, load_tokenizer
from merit.models.source import ModelFolder
from merit.run.layout import RunDir


@pytest.fixture
def base_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with <|endoftext|> as its only end token; its template ends turns with <|im_end|>."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    other = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    end = next(token["id"] for token in other if token["content"] == "<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | {"eos_token_id": end}))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<|endoftext|>"}))
    return folder


def test_the_end_of_a_turn_stops_the_merged_model(base_model, tmp_path, capsys):
    rows = [{"question": f"what is {i}?", "answer": f"{i}"} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "merit.yaml"
    file.write_text(f"""
model: {base_model}
mixture: {{d: {{path: d.jsonl}}}}
split: {{splitter: single}}
evaluate: {{generate: 0}}
output: run
""")
    done = Command(capsys)("run", file)
    assert done.code == 0, done.err
    tokenizer = load_tokenizer(ModelFolder(base_model, "", False))
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    merged = RunDir(tmp_path / "run").method().merged(1.0)
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == ends
    assert load_model(merged).generation_config.eos_token_id == ends
    assert "unchanged, kept" in Command(capsys)("run", file).err.split("merge:")[1].split("\n")[0]


def test_the_end_of_a_turn_stops_answers(base_model):
    model = load_model(base_model).eval()
    tokenizer = load_tokenizer(ModelFolder(base_model, "", False))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.lm_head.register_forward_hook(lambda module, _, logits: logits.index_fill(-1, torch.tensor([end]), 1e9))
    assert greedy_answers(model, tokenizer, [[10, 11], [12]], max_new_tokens=8, batch_tokens=512) == [[end], [end]]


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 1, "top_p": 0.8}, {}, {"eos_token_id": [1, 7], "top_p": 0.8}),
        ({"eos_token_id": [1, 7]}, {}, {"eos_token_id": [1, 7]}),
        (None, {"eos_token_id": 2}, {"eos_token_id": [2, 7]}),
        (None, {"text_config": {"eos_token_id": [3]}}, {"eos_token_id": [3, 7]}),
        ({}, {"eos_token_id": None}, {"eos_token_id": [7]}),
    ],
)
def test_what_is_written(tmp_path, generation, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "generation_config.json"
    if generation is not None:
        file.write_text(json.dumps(generation))
    _stop_at(tmp_path, 7)
    assert json.loads(file.read_text()) == expected
