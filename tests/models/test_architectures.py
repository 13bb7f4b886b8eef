"""Text architectures, tiny and random: losses, gradients, a training step and greedy answers are those of transformers
alone, one example at a time, whatever padding and packing do to the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from merit.base.errors import InputError
from merit.compute.abilities import (
    Abilities,
    check_causal,
    takes_packed_rows,
    takes_padding,
    takes_prompts_of_different_lengths,
)
from merit.compute.batches import length_batches
from merit.compute.losses import example_losses, supervised_logits, supervised_nll
from merit.config.sections import TrainConfig
from merit.data.example import IGNORED, Encoded
from merit.evaluate.answers import greedy_answers
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec
from merit.train import branch
from merit.train.checkpoints import Counters
from merit.train.rows import plan_batching
from merit.train.trainer import BranchTrainer, may_pack

CPU = torch.device("cpu")
END, VOCABULARY, RATE, NEW_TOKENS = 2, 97, 0.1, 4

# A configuration gets those that it has. Windows are shorter than the examples.
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END},
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width", "attention_hidden_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "mamba_d_ssm"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "expansion_ratio"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "moe_k", "num_experts_per_tok", "mamba_expand"), 2),
    **dict.fromkeys(("head_dim", "mamba_d_head", "state_size", "mamba_d_state", "sliding_window"), 8),
    **dict.fromkeys(("attention_window_size", "chunk_size", "mamba_chunk_size", "kv_lora_rank"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "rotary_dim"), 4),
    **dict.fromkeys(("linear_num_value_heads", "qk_rope_head_dim", "time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "num_nextn_predict_layers"), 1),
    **dict.fromkeys(("attention_dropout", "resid_dropout", "dropout", "activation_dropout", "layerdrop"), 0.0),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "embed_dropout"), 0.0),
    **dict.fromkeys(("router_jitter_noise", "input_jitter_noise", "residual_dropout"), 0.0),
}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
PLAIN = """llama mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma phi3 phimoe gpt2 gpt_neox gptj opt bloom stablelm
starcoder2 olmo2 olmoe cohere granite granitemoe nemotron glm4 smollm3 mamba rwkv llama4_text doge"""
KINDS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in PLAIN.split()},
    **dict.fromkeys(("gemma2", "gemma3_text", "cohere2", "gpt_oss"), WINDOWS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), LINEAR),
    "phi": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 4},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
    "mpt": {"attn_config": {"attn_impl": "torch", "alibi": True}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_d_head": 8},
}
# ALiBi, states, sinks, soft-capping, and windows or biases that attention learns from a mask.
NOT_PACKED = {
    *("bloom", "mpt", "falcon", "rwkv", "recurrent_gemma", "mamba", "mamba2", "lfm2", "jamba", "falcon_h1", "gemma2"),
    *("granitemoehybrid", "qwen3_next", "qwen3_5_text", "gpt_oss", "llama4_text", "gptj", "gpt_neo", "phimoe", "doge"),
}
BALANCED = {"granitemoe", "granitemoehybrid", "phimoe", "mixtral", "olmoe", "jamba", "qwen2_moe", "qwen3_moe"}


def tiny(kind: str, **changes: Any) -> Any:
    """A random model. Weights are large enough for attention to matter."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = CONFIG_MAPPING[kind]
    other_names = dict(getattr(config, "attribute_map", None) or {})
    known = {*vars(config()), *other_names}
    given = {name: value for name, value in SIZES.items() if name in known and other_names.get(name) not in SIZES}
    made = config(**given | KINDS.get(kind, {}) | changes)
    made.use_mamba_kernels = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=min(0.5, 1.2 * parameter.shape[-1] ** -0.5))
    return model.eval()


def rows() -> list[Encoded]:
    """Examples of five lengths that share a prompt's beginning."""
    draw = torch.Generator().manual_seed(5)
    prefix = torch.randint(3, VOCABULARY, (6,), generator=draw).tolist()
    found = []
    for prompt, answer in ((9, 4), (15, 10), (8, 2), (18, 18), (9, 9)):
        ids = prefix + torch.randint(3, VOCABULARY, (prompt + answer - 6,), generator=draw).tolist()
        found.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return found


ROWS = rows()
LENGTHS = [len(row.input_ids) for row in ROWS]
TOKENS = sum(row.supervised for row in ROWS)


def alone(model: Any, row: Encoded) -> torch.Tensor:
    """Summed loss of an example, by transformers alone."""
    logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0].float()
    return cross_entropy(logits[:-1], torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum")


def balanced(model: Any) -> torch.Tensor:
    """transformers' own loss of all examples in one padded batch, the balance of experts included."""
    ids = torch.zeros(len(ROWS), max(LENGTHS), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for index, row in enumerate(ROWS):
        ids[index, : LENGTHS[index]] = torch.tensor(row.input_ids)
        mask[index, : LENGTHS[index]] = 1
        labels[index, : LENGTHS[index]] = torch.tensor(row.labels)
    loss: torch.Tensor = model(
        input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, output_router_logits=True
    ).loss
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def distance(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Relative, of all tensors together."""
    error = sum(float((a - b).pow(2).sum()) for a, b in zip(found, wanted, strict=True))
    return (error / sum(float(b.pow(2).sum()) for b in wanted)) ** 0.5


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(END), pad_token="0")


def trained(model: Any, folder: Path, **options: Any) -> BranchTrainer:
    """Takes one step of SGD on all examples, as a branch does."""
    batching = plan_batching(LENGTHS, 10**6, 10**6 if takes_padding(model, CPU) else 1)
    data = {"input_ids": [row.input_ids for row in ROWS], "labels": [row.labels for row in ROWS]}
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0,
        optim="sgd",
        max_grad_norm=1e9,
        per_device_train_batch_size=batching.micro,
        gradient_accumulation_steps=batching.accumulation,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        max_length=None,
        **options,
    )
    trainer = BranchTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(data),
        processing_class=tokenizer(),
        recipe=TrainConfig(schedule="constant", warmup_ratio=0),
        lengths=LENGTHS,
        batching=batching,
        counters=Counters(),
    )
    trainer.train()
    return trainer


def check_all(model: Any, folder: Path) -> BranchTrainer:
    """Compares everything that merit does with a model with what transformers does."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        means = [float(alone(reference, row)) / row.supervised for row in ROWS]
    for packing in (False, True):
        found, _ = example_losses(model, ROWS, batch_tokens=10**6, precision="fp32", packing=packing)
        assert found == pytest.approx(means, abs=1e-5)

    sum(alone(reference, row) for row in ROWS).backward()
    wanted = gradients(reference)
    sums = GradientEngine(model, SketchSpec(kind="full"), batch_tokens=10**6).measure("d", ROWS).sums.sum(axis=0)
    assert distance([torch.from_numpy(sums)], [torch.cat([g.flatten() for g in wanted.values()])]) < 1e-5

    answers = greedy_answers(
        model, tokenizer(), [row.input_ids for row in ROWS], max_new_tokens=NEW_TOKENS, batch_tokens=10**6
    )
    for row, answer in zip(ROWS, answers, strict=True):
        assert len(answer) == NEW_TOKENS or answer[-1] == END
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([[*row.input_ids, *answer]]), use_cache=False).logits[0]
        assert answer == logits[len(row.input_ids) - 1 : -1].argmax(-1).tolist()

    start = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = trained(model, folder)
    loss = sum(float(alone(reference, row).detach()) for row in ROWS) / TOKENS
    steps = [-RATE * g / TOKENS for g in wanted.values()]
    if trainer.aux_loss_enabled:
        total = balanced(reference.train())
        total.backward()
        loss, steps = float(total.detach()), [-RATE * g for g in gradients(reference).values()]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-5)
    moved = [after.detach() - before for after, before in zip(model.parameters(), start, strict=True)]
    assert distance(moved, steps) < 1e-4  # rounding of weights that are much larger than a step
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    assert takes_packed_rows(model, CPU) == (kind not in NOT_PACKED)
    assert takes_prompts_of_different_lengths(model, CPU) == (kind not in ("rwkv", "recurrent_gemma"))
    trainer = check_all(model, tmp_path)
    assert trainer.aux_loss_enabled or kind not in BALANCED


def test_there_are_enough_of_them() -> None:
    assert len([kind for kind in KINDS if kind in CONFIG_MAPPING]) >= 30


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Llama whose positions count twice where a batch has padding."""
    model = tiny("llama")
    model.set_attn_implementation("eager")
    plain = type(model).forward

    def forward(self: Any, attention_mask: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        if attention_mask is not None and not bool(attention_mask.all()):
            position_ids = 2 * attention_mask.cumsum(1)[:, -rest["input_ids"].shape[1] :]
        return plain(self, attention_mask=attention_mask, position_ids=position_ids, **rest)

    monkeypatch.setattr(type(model), "forward", forward)
    return model


def test_a_model_that_padding_disturbs_runs_without(disturbed: Any, tmp_path: Path) -> None:
    assert not takes_padding(disturbed, CPU)
    assert not takes_prompts_of_different_lengths(disturbed, CPU)
    nll, logits = supervised_nll(disturbed, ROWS), supervised_logits(disturbed, ROWS)
    found = torch.zeros(len(ROWS)).index_add_(0, nll.row, nll.nll.detach())
    torch.testing.assert_close(found, torch.stack([alone(disturbed, row).detach() for row in ROWS]))
    targets = torch.cat([torch.tensor(ROWS[i].labels)[-ROWS[i].supervised :] for i in nll.row.unique_consecutive()])
    torch.testing.assert_close(cross_entropy(logits, targets, reduction="none"), nll.nll)
    assert check_all(disturbed, tmp_path).args.per_device_train_batch_size == 1


def test_a_branch_asks_whether_its_model_takes_padding(disturbed: Any) -> None:
    assert not branch._takes_padding(disturbed)
    assert branch._takes_padding(tiny("gpt2"))


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_that_reads_later_tokens_is_refused(kind: str) -> None:
    model = tiny(kind, d_inner=48) if kind == "xlnet" else tiny(kind)
    for refuse in (lambda: Abilities.of(model, CPU), lambda: branch._takes_padding(model)):
        with pytest.raises(InputError, match=f"`model.path`: `{kind}`: its tokens attend to later ones"):
            refuse()


def test_bert_as_a_decoder_is_not_refused() -> None:
    check_causal(tiny("bert", is_decoder=True), CPU)


def test_what_trl_cannot_balance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="router_aux_loss_coef`: TRL cannot balance the experts of `granitemoe`"):
        trained(tiny("granitemoe"), tmp_path, loss_type="dft")
    model = tiny("granitemoe")
    assert not trained(model, tmp_path, loss_type="dft", router_aux_loss_coef=0.0).aux_loss_enabled


def test_a_routers_noise_is_not_shared_by_examples(tmp_path: Path) -> None:
    model = tiny("mixtral")
    assert may_pack(model, CPU)
    model.config.router_jitter_noise = 0.1
    assert not may_pack(model, CPU)


def test_batches_of_one_length() -> None:
    lengths = [3, 5, 3, 5, 5, 2]
    assert list(length_batches(lengths, 10, equal=True)) == [[1, 3], [4], [0, 2], [5]]
