"""What is known of plain decoders without transformers is what transformers says."""

from __future__ import annotations

import itertools

import pytest
import transformers

from merit.base.files import read_json
from merit.models.architecture import architecture_of
from merit.models.linear import linear_layers, linear_weights
from merit.models.plain_decoders import plain_tensors

SIZES = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 32},
}
OPTIONS = [
    {"tie_word_embeddings": tied, "attention_bias": attention, "mlp_bias": mlp} | ({"head_dim": head} if head else {})
    for tied, head, attention, mlp in itertools.product((False, True), (None, 8), (False, True), (False, True))
]


def config(kind, **settings):
    made = getattr(transformers, f"{kind}Config")(**SIZES | settings, architectures=[f"{kind}ForCausalLM"])
    return made.to_dict()


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_names_and_shapes(kind):
    for options in OPTIONS:
        values = config(kind, **options)
        known = architecture_of(values)
        assert known is not None
        assert plain_tensors(values) == known.saved, options
        assert not known.transposed


def test_what_is_not_plain_is_left_to_transformers():
    values = config("Qwen3")
    assert plain_tensors(values) is not None
    changes = [
        {"architectures": ["Qwen3ForSequenceClassification"]},
        {"model_type": "qwen3_moe"},
        {"head_dim": None},
        {"num_key_value_heads": None},
        {"vocab_size": "32"},
        {"num_hidden_layers": 10**9},
        {"tie_word_embeddings": None},
    ]
    assert [plain_tensors(values | change) for change in changes] == [None] * len(changes)
    assert plain_tensors({}) is None


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        ("Mixtral", True),
        ("Qwen3Moe", True),
        ("GptOss", False),
        ("Gemma2", False),
        ("GPT2", False),
        ("Bloom", False),
        ("Llava", False),
    ],
)
def test_a_model_loads_what_it_saves(kind, fused):
    """So that nobody need ask. Some models have their experts under other names."""
    known = architecture_of(getattr(transformers, f"{kind}Config")(num_hidden_layers=2).to_dict())
    assert known is not None
    asked = known._ask(known.saved)
    assert asked is not None
    assert asked == known.loading(known.saved)
    assert (known.fused is not None) is fused


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_their_linear_layers(tmp_path, kind, tied):
    config = getattr(transformers, f"{kind}Config")(**SIZES, tie_word_embeddings=tied)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.save_pretrained(tmp_path)
    names = list(model.state_dict())
    found = linear_weights(tmp_path, names)
    assert plain_tensors(read_json(tmp_path / "config.json")) is not None
    assert found == dict.fromkeys(linear_layers(model), False)
    assert len(found) == 14 + (not tied)
