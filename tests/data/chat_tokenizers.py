"""Small byte-level tokenizers, trained on the spot, with chat templates in the manner of well-known families."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Knows no add_generation_prompt at all, as older ChatML models.
HEADERLESS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start>' + role + '\n' + m['content'] | trim + '<stop>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
# Reasoning is shown in the last turn only (an empty one is added there), and stripped from all before.
STRIPPING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% for m in messages %}{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{% set why = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m['content'] else '' %}"
    "{{ '<|im_start|>assistant\n<think>\n' + why + '\n</think>\n\n' + answer + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + answer + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The generation prompt opens the reasoning, which the text of a conversation leaves out: no prefix of it.
OPENING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|A|>' + m['content'].split('</think>')[-1] + eos_token }}{% else %}{{ '<|U|>' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|A|><think>\n' }}{% endif %}"
)
# The white space before an answer is the assistant's, and nothing tells the generation prompt apart, as in Llama-2.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Text follows the last turn of a conversation, as in Phi-3.
PHI3 = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The last turn ends with another token than those before, as in gpt-oss.
GPT_OSS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] }}"
    "{{ '</s>' if loop.last and m['role'] == 'assistant' else '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Only the last turn has an end: those before run into the next speaker.
LAST_ENDS = (
    "{% for m in messages %}{{ ('<|A|>' if m['role'] == 'assistant' else '<|U|>') + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|A|>' }}{% else %}{{ eos_token }}{% endif %}"
)
# Nothing ends a turn.
ENDLESS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Where turns lie depends on the whole conversation: nothing can be found in it.
SHIFTING = (
    "{% for m in messages %}{{ messages | length | string + m['role'] + m['content'] | upper }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'go' }}{% endif %}"
)

_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<start>", "<stop>"]
_SPECIAL += ["<|A|>", "<|U|>"]
_TEXT = "the quick brown fox asks: what is the answer to this question? user assistant system ### hello world\n\n"


@cache
def _trained(adds_bos: bool, trim: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT] * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    elif trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def make_tokenizer(
    template: str | None = CHATML, *, adds_bos: bool = False, trim: bool = False, eos: str | None = "</s>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of 400 tokens or fewer. `trim`: offsets leave out white space, as GPT-2's do."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(adds_bos, trim).to_str()), bos_token="<s>", eos_token=eos
    )
    tokenizer.chat_template = template
    return tokenizer
