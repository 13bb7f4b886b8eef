"""θ0, trained jointly on the datasets until it has seen their format: a given model, or a small Llama from nothing.

The fresh model has an own tokenizer, because a ready one's vocabulary is too large here: 49,152 embeddings of width 128
are six times the rest of such a model, and its head most of the work. Its merges run across spaces, so that a task's
fixed wording becomes a few tokens; digits stay apart, so that numbers can be computed with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merit.base.kept import made_once
from merit.config.run import RunConfig
from merit.config.sections import ModelConfig
from merit.config.study import StudyConfig, WarmupConfig
from merit.data.build import build_mixture, open_readers
from merit.models.loading import quiet_transformers
from merit.models.source import resolve_model
from merit.run.layout import BranchDir, RunDir
from merit.study.spec import Study, branch_data, reseeded
from merit.train.branch import train_branch
from merit.train.spec import BranchSpec
from merit.train.step import prepare_branch

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
_LONGEST_TOKEN = 48  # characters
_CONTEXT = 1024
_HELD_OUT = 10  # examples a dataset, about: a mixture holds some out, though nobody looks at these
_log = logging.getLogger(__name__)


def make_init(study: Study) -> None:
    """Makes θ0 in init/branch/checkpoint, as far as an earlier call has not; nothing where the file names a model.

    Raises:
        InputError: a dataset cannot be read.
        StageError: the loss became NaN.
    """
    warmup = study.config.warmup
    if warmup is None:
        return
    from merit.models.loading import load_tokenizer

    run = RunDir(study.dir.init)
    start = study.dir.init / "random"
    config = _config(study.config, warmup, study.config.model or ModelConfig(path=str(start)))
    if study.config.model is None:
        texts = _texts(config, study.base)
        made_once(start, lambda part: _random_model(part, warmup, texts), holds="config.json")
    theta = resolve_model(config.model, study.base)
    mixture = build_mixture(config, study.base, run, load_tokenizer(theta))
    spec = BranchSpec(
        method="warm-up",
        branch=0,
        model=config.model,
        model_fingerprint=theta.fingerprint,
        train=warmup.train,
        data=branch_data(mixture.datasets, run, study.dir.root),
        max_length=mixture.max_length,
        planned_tokens=round(sum(mixture.planned_tokens.values()) * warmup.train.epochs),
        seed=0,
    )
    branch = BranchDir(study.dir.init / "branch")
    prepare_branch(branch, spec)
    result = train_branch(study.dir.run, branch, base=study.base)
    _log.info("θ0: %s steps, loss %.3f", f"{result.steps:,}", result.final_loss or 0)


def _config(config: StudyConfig, warmup: WarmupConfig, model: ModelConfig) -> RunConfig:
    """The warm-up's data: the mixture and what is to be retained, in a draw that no seed of the study has."""
    wanted = dict.fromkeys(config.mixture, warmup.mixture_examples) | dict.fromkeys(config.retention, warmup.examples)
    return RunConfig(
        model=model,
        mixture={
            name: reseeded(item, 0).model_copy(update={"max_examples": wanted[name], "weight": 1.0})
            for name, item in {**config.mixture, **config.retention}.items()
        },
        held_out_fraction=min(0.5, _HELD_OUT / min(wanted.values())),
        train=warmup.train,
    )


def _texts(config: RunConfig, base: Path) -> Iterator[str]:
    for reader in open_readers(config, base):
        for read in reader.read():
            if read.value is not None:
                yield from (turn.content for turn in (*read.value.prompt, *read.value.completion))


def _random_model(folder: Path, warmup: WarmupConfig, texts: Iterator[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    byte_level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=warmup.vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=warmup.hidden,
            intermediate_size=warmup.intermediate,
            num_hidden_layers=warmup.layers,
            num_attention_heads=warmup.heads,
            num_key_value_heads=warmup.heads,
            max_position_embeddings=_CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=wrapped.eos_token_id,
            pad_token_id=wrapped.pad_token_id,
        )
    )
    quiet_transformers()
    model.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    _log.info("a fresh model of %s parameters, %s tokens of vocabulary", f"{count:,}", f"{len(wrapped):,}")
