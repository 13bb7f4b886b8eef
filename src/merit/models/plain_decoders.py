"""The tensors of the commonest decoders, known without transformers.

To import transformers takes seconds and 300 MB, and a merge of plain checkpoints needs nothing else of it. What is not
exactly as here, transformers judges (`architecture`). A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
_KINDS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads")  # fmt: skip
_MOST_LAYERS = 4096


def plain_tensors(config: Mapping[str, Any]) -> Shapes | None:
    """Name → shape of what a model of this configuration saves; None for all but plain decoders.

    Every size must be stated, for defaults differ between versions of transformers.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or config.get("architectures") != [_KINDS.get(kind)]:
        return None
    vocabulary, width, inner, layers, heads, groups = (_positive(config.get(key)) for key in _SIZES)
    flags = [config.get(key, False) for key in ("tie_word_embeddings", "attention_bias", "mlp_bias")]
    usual = width // heads if heads and kind != "qwen3" else 0
    head = usual if config.get("head_dim") is None else _positive(config["head_dim"])
    if not all((vocabulary, width, inner, layers, heads, groups, head)) or layers > _MOST_LAYERS:
        return None
    if "tie_word_embeddings" not in config or not all(isinstance(flag, bool) for flag in flags):
        return None
    tied, attention_bias, mlp_bias = flags
    matrices = {
        "self_attn.q_proj": (heads * head, width),
        "self_attn.k_proj": (groups * head, width),
        "self_attn.v_proj": (groups * head, width),
        "self_attn.o_proj": (width, heads * head),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    biased: tuple[str, ...] = ()
    if kind == "qwen2":
        biased = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    elif kind != "mistral":
        parts = ("self_attn.",) * attention_bias + ("mlp.",) * (mlp_bias and kind == "llama")
        biased = tuple(name for name in matrices if name.startswith(parts))
    block: Shapes = {f"{name}.weight": shape for name, shape in matrices.items()}
    block |= {f"{name}.bias": matrices[name][:1] for name in biased}
    block |= {f"{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    if kind == "qwen3":
        block |= {f"self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")}
    found = {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}
    found |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    return found if tied else found | {"lm_head.weight": (vocabulary, width)}


def _positive(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
