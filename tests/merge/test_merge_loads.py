"""The merged folder is a finished model: transformers loads it, and its logits are those of an in-memory average."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from merit.merge.average import merge_checkpoints

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "shard"), [("float32", 10**9), ("bfloat16", 9_000)])
def test_logits_of_the_merge(tmp_path, tied, dtype, shard):
    torch.manual_seed(0)
    models = [LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)) for _ in range(3)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number), max_shard_size="10KB" if number == 1 else "5GB")
        (tmp_path / str(number) / "preprocessor_config.json").write_text("{}")
    merge_checkpoints(
        [tmp_path / str(n) for n in range(3)], [5, 2, 1], {1.0: tmp_path / "out"}, dtype=dtype, shard_bytes=shard
    )
    states = [model.state_dict() for model in models]
    mean = {n: sum(w * s[n].double() for w, s in zip((5, 2, 1), states, strict=True)) / 8 for n in states[0]}
    expected = models[0]
    expected.load_state_dict({name: value.to(getattr(torch, dtype)).float() for name, value in mean.items()})
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == getattr(torch, dtype)
    tokens = torch.arange(20).reshape(2, 10)
    assert torch.equal(loaded.float()(tokens).logits, expected(tokens).logits)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype
    assert (tmp_path / "out/generation_config.json").exists()
    assert (tmp_path / "out/preprocessor_config.json").exists()


def test_plain_checkpoints_are_merged_without_torch(tmp_path):
    """Importing torch and transformers would take longer, and more memory, than the merge itself."""
    for number in range(2):
        torch.manual_seed(number)
        LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / str(number))
    program = (
        "import sys; from merit.cli.main import run; code = run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "merge", tmp_path / "0", tmp_path / "1", "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "sklearn"}.isdisjoint(done.stderr.split())
    assert (tmp_path / "out/model.safetensors").is_file()
