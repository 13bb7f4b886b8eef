"""Losses at supervised positions, against transformers' own loss, for every way a head is reached."""

from __future__ import annotations

import pytest
import torch
import transformers

from merit.compute.batches import length_batches, padded
from merit.compute.head import task_of
from merit.compute.losses import supervised_nll
from merit.data.example import Encoded

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": (transformers.LlamaConfig(**SIZES, **HEADS), transformers.LlamaForCausalLM),
    "gemma2": (
        transformers.Gemma2Config(**SIZES, **HEADS, head_dim=8, final_logit_softcapping=3.0),
        transformers.Gemma2ForCausalLM,
    ),
    "gpt2": (
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        transformers.GPT2LMHeadModel,
    ),
    "mixtral": (
        transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=2, num_experts_per_tok=1),
        transformers.MixtralForCausalLM,
    ),
}
ROWS = [
    Encoded([5, 6, 7, 8, 9], [-100, -100, -100, 8, 9]),
    Encoded([3, 4], [3, 4]),  # the first token is predicted by nothing
    Encoded([9, 8, 7, 6, 5, 4, 3], [-100, 8, -100, -100, 5, 4, -100]),  # two turns
]


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_each_example_alone(name: str) -> None:
    torch.manual_seed(0)
    config, kind = MODELS[name]
    model = kind(config).eval()
    result = supervised_nll(model, ROWS)
    assert result.row.tolist() == [0, 0, 1, 2, 2, 2]
    for index, row in enumerate(ROWS):
        wanted = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        torch.testing.assert_close(result.nll[result.row == index].mean(), wanted, rtol=1e-5, atol=1e-6)


def test_rows_without_loss_give_none() -> None:
    config, kind = MODELS["llama"]
    result = supervised_nll(kind(config), [Encoded([1, 2, 3], [-100, -100, -100])])
    assert result.nll.numel() == 0


def test_padding() -> None:
    batch = padded(ROWS[:2], pad_token=42)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [3, 4, 42, 42, 42]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 9], [-100, 4, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    task = task_of(batch)
    assert (task.keep.tolist(), task.targets.tolist(), task.owner.tolist()) == ([2, 3, 5], [8, 9, 4], [0, 0, 1])


def test_batches_hold_like_lengths_and_no_more_tokens_than_allowed() -> None:
    lengths = [3, 10, 4, 9, 50, 2]
    assert list(length_batches(lengths, 20)) == [[4], [1, 3], [2, 0, 5]]
    assert list(length_batches([], 20)) == []
