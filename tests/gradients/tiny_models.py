"""Tiny random models of every parameter kind, and plain autograd on them as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from merit.data.example import IGNORED, Encoded

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": COMMON,
    "Qwen2": {**COMMON, "tie_word_embeddings": True},  # biases, tied head
    "Gemma": {**COMMON, "head_dim": 8},  # tied head, scaled embeddings
    "Gemma2": {
        **COMMON,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
    },
    "Mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},  # fused experts
    "GptOss": {**COMMON, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},  # transposed experts
    "GPT2": {
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
        "resid_pdrop": 0.5,
        "embd_pdrop": 0.5,
        "attn_pdrop": 0.5,
    },  # Conv1D, learned positions, dropout that must be off
}


def tiny(architecture: str, seed: int = 0, *, attn_implementation: str | None = None, **options: Any) -> Any:
    """A model of `architecture` with random weights, biases and norms, in fp32 and training mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**CONFIGS.get(architecture, COMMON), **options})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def examples(count: int, seed: int = 0, longest: int = 30) -> list[Encoded]:
    """Examples of differing length, a prompt of which a random part carries no loss; some in two turns."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        length = int(torch.randint(6, longest + 1, (1,), generator=generator))
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        prompt = int(torch.randint(0, length - 1, (1,), generator=generator))
        labels = [IGNORED] * prompt + ids[prompt:]
        if length > 12:
            labels[length - 4] = IGNORED
        result.append(Encoded(ids, labels))
    return result


def plain_gradients(model: Any, data: Sequence[Encoded]) -> tuple[dict[str, Tensor], float]:
    """Gradient and value of Σ −log p over supervised tokens, one unpadded example at a time, as in a textbook."""
    model.eval()
    model.zero_grad(set_to_none=True)
    total = 0.0
    for example in data:
        logits = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
        logp = torch.log_softmax(logits.float(), dim=-1)
        loss = torch.zeros(())
        for position, label in enumerate(example.labels):
            if position > 0 and label != IGNORED:
                loss = loss - logp[position - 1, label]
        loss.backward()
        total += float(loss.detach())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return grads, total
