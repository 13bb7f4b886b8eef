"""A model that looks positions up in a table reads no more tokens than it has positions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from cli.command import Command
from merit.base.errors import InputError
from merit.config import RunConfig
from merit.context import RunContext
from merit.data.build import build_mixture
from merit.data.encode import POSITIONS, Positions
from merit.data.store import EncodedDataset
from merit.evaluate.answers import greedy_answers
from merit.models.loading import load_model, load_tokenizer, positions_of
from merit.models.source import ModelFolder
from merit.plan.preflight import preflight_problems
from merit.run.layout import RunDir

COUNT = 64


@pytest.fixture(scope="module")
def gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 positions, and the tokenizer of the tiny Llama."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_model / name).is_file():
            shutil.copy(tiny_model / name, folder)
    theirs = AutoConfig.from_pretrained(tiny_model)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=theirs.vocab_size, n_positions=COUNT, n_embd=16, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=theirs.eos_token_id, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_rows(file: Path) -> None:
    """Forty short rows, and eight whose text is longer than the model's positions."""
    rows = [{"question": f"what is {i}?", "answer": f"{i}" if i < 40 else "long " * 80 + str(i)} for i in range(48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_counts_as_a_limit(gpt2: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert positions_of(ModelFolder(gpt2, "", False)) == Positions(COUNT, table=True)
    assert positions_of(ModelFolder(tiny_model, "", False)) == Positions(256, table=False)
    opt = OPTConfig(vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=32, word_embed_proj_dim=16)  # fmt: skip
    OPTForCausalLM(opt).save_pretrained(tmp_path / "opt")
    assert positions_of(ModelFolder(tmp_path / "opt", "", False)) == Positions(32, table=True)
    bloom = AutoConfig.for_model("bloom", vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(bloom).save_pretrained(tmp_path / "bloom")
    assert positions_of(ModelFolder(tmp_path / "bloom", "", False)) is None


def test_longer_rows_are_cut_and_counted(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "d.jsonl")
    file = tmp_path / "merit.yaml"
    file.write_text(f"""
model: {gpt2}
mixture: {{d: {{path: d.jsonl}}}}
split: {{splitter: single}}
calibration: {{examples: 4}}
train: {{learning_rate: 1e-3, precision: fp32}}
evaluate: {{generate: 4, drift: 1}}
output: run
""")
    merit = Command(capsys)
    done = merit("check", file)
    assert done.code == 0, done.err
    assert "8 of 48 examples (16.7%) are cut at the model's 64 positions" in " ".join(done.out.split())
    done = merit("run", file)
    assert done.code == 0, done.err
    assert EncodedDataset.open(RunDir(tmp_path / "run").data("d")).lengths.max() == COUNT


def test_a_model_that_computes_further_positions_is_told_of_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}", "answer": "long " * 300}) + "\n" for i in range(40))
    )
    file = tmp_path / "merit.yaml"
    file.write_text(f"model: {tiny_model}\nmixture: {{d: {{path: d.jsonl}}}}\nsplit: {{splitter: single}}\n")
    done = Command(capsys)("check", file)
    assert done.code == 0, done.err
    assert "and the model was made for 256: set `train.max_length`" in " ".join(done.out.split())


def test_a_prompt_that_fills_the_model_is_told(gpt2: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i} " * 90, "answer": "x"} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {"model": "x", "mixture": {"d": {"path": "d.jsonl"}}, "split": {"splitter": "single"}}
    )
    with pytest.raises(InputError, match="the model's 64 positions"):
        build_mixture(config, tmp_path, RunDir(tmp_path / "run"), load_tokenizer(ModelFolder(gpt2, "", False)))


def test_stored_rows_that_are_too_long_are_made_again(gpt2: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl")
    config = RunConfig.model_validate(
        {"model": "x", "mixture": {"d": {"path": "d.jsonl"}}, "split": {"splitter": "single"}}
    )
    run, tokenizer = RunDir(tmp_path / "run"), load_tokenizer(ModelFolder(gpt2, "", False))
    limit = getattr(tokenizer, POSITIONS)
    setattr(tokenizer, POSITIONS, None)
    assert build_mixture(config, tmp_path, run, tokenizer).datasets[0].longest > COUNT
    setattr(tokenizer, POSITIONS, limit)
    assert build_mixture(config, tmp_path, run, tokenizer).datasets[0].longest == COUNT


def test_answers_end_where_the_positions_do(gpt2: Path) -> None:
    model = load_model(gpt2).eval()
    model.generation_config.eos_token_id = None
    tokenizer = load_tokenizer(ModelFolder(gpt2, "", False))
    prompts = [[5] * 60, [6] * 40, [7] * 8, [8] * 64]
    found = greedy_answers(model, tokenizer, prompts, max_new_tokens=30, batch_tokens=4096)
    assert [len(answer) for answer in found] == [4, 24, 30, 0]
    alone = [greedy_answers(model, tokenizer, [prompt], max_new_tokens=30, batch_tokens=4096)[0] for prompt in prompts]
    assert found == alone


def test_a_proxy_with_fewer_positions_is_refused(gpt2: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl")
    file = tmp_path / "merit.yaml"
    text = f"model: {tiny_model}\nmixture: {{d: {{path: d.jsonl}}}}\ncalibration: {{proxy: {gpt2}}}\n"
    file.write_text(f"{text}split: {{splitter: single}}\n")
    (problem,) = preflight_problems(RunContext.open(file))
    assert "`train.max_length: 64`" in str(problem)
    file.write_text(f"{text}split: {{splitter: single}}\ntrain: {{max_length: 64}}\n")
    assert preflight_problems(RunContext.open(file)) == []
