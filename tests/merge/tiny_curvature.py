"""A tiny Llama in several states, rows for each, and plain ways to its curvature."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from merit.data.example import Encoded

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=32,
    tie_word_embeddings=True,
)


def model_with(seed: int) -> LlamaForCausalLM:
    """θ0 (seed 0), or a branch at a small random step from it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    if seed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _rows(seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(100 + seed)
    rows = []
    for length in (5, 9, 9, 12):
        ids = torch.randint(1, 40, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [-100] * 3 + ids[3:]))
    return rows


ROWS = {seed: _rows(seed) for seed in (1, 2, 3)}


def gradient_squares(model, name, rows):
    """Mean over supervised tokens of the squared gradient of each example's summed loss."""
    total, tokens = 0.0, 0
    for row in rows:
        model.zero_grad()
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        total = total + dict(model.named_parameters())[name].grad.double().square()
        tokens += row.supervised
    return total / tokens
