"""Scores of answers: the reference by equality, reasoning_gym by its own scorers, after a trip through JSON."""

from __future__ import annotations

import json
from importlib import resources

import pytest
import yaml

from data.chat_tokenizers import CHATML, ENDLESS, MISTRAL, OPENING, make_tokenizer
from merit.data.encode import Encoder
from merit.data.example import Example, Message
from merit.evaluate.answers import AnswerReader, score_answer


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("blue", "blue", 1.0),
        ("  blue\n", "blue", 1.0),
        ("a  b\tc", "a b c", 1.0),
        ("\ufb01ne", "fine", 1.0),  # the ligature ﬁ is fi after NFKC
        ("Blue", "blue", 0.0),
        ("blue.", "blue", 0.0),
        ("", "blue", 0.0),
        ("blue", None, 0.0),
    ],
)
def test_the_reference_is_compared_after_normalisation(answer, reference, score):
    assert score_answer(answer, reference=reference, verifier=None) == score


THINKING = {
    # The template writes an empty think block before an answer without reasoning, as Qwen3's does.
    "qwen3": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "glm": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
        "{{ '\n<think></think>\n' }}{% endif %}{{ m['content'] + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    # Answers stand in a channel of their own.
    "gpt-oss": (
        "{% for m in messages %}{{ '<|start|>' + m['role'] }}{% if m['role'] == 'assistant' %}"
        "{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m['content'] + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    "opened by the prompt": OPENING,
    "none": CHATML,
}
WITH_REASONING = {
    "qwen3": "<think>\nIs it red? No.\n</think>\n\nblue<|im_end|>",
    "glm": "\n<think>Is it red? No.</think>\nblue<|eot|>",
    "gpt-oss": "<|channel|>analysis<|message|>Is it red? No.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>blue<|eot|>",
    "opened by the prompt": "Is it red? No.\n</think>\n\nblue</s>",
}


@pytest.mark.parametrize("family", THINKING)
def test_the_supervised_target_is_a_right_answer(family):
    tokenizer = make_tokenizer(THINKING[family])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    example = Example((Message("user", "which colour?"),), (Message("assistant", "blue"),), "blue")
    encoded = Encoder(tokenizer, 512).encode(example)
    target = [label for label in encoded.labels if label != -100]
    reader = AnswerReader.of(tokenizer)
    assert score_answer(reader.text(target), reference="blue", verifier=None) == 1.0
    assert score_answer(reader.text(target), reference="red", verifier=None) == 0.0
    if family in WITH_REASONING:
        answer = tokenizer(WITH_REASONING[family], add_special_tokens=False)["input_ids"]
        assert score_answer(reader.text(answer), reference="blue", verifier=None) == 1.0
        assert score_answer(reader.text(answer), reference="<think>\nmy own\n</think>\nblue", verifier=None) == 1.0


@pytest.mark.parametrize(
    ("template", "ends"),
    [(CHATML, "<|im_end|>"), (THINKING["gpt-oss"], "<|eot|>"), (MISTRAL, "</s>"), (None, "</s>"), (ENDLESS, None)],
)
def test_the_end_of_a_turn_ends_an_answer(template, ends):
    tokenizer = make_tokenizer(template)
    token = Encoder(tokenizer, 64).template.end_token
    assert (None if token is None else tokenizer.convert_ids_to_tokens(token)) == ends


def demo_families() -> list[str]:
    config = yaml.safe_load(resources.files("merit.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
    datasets = {**config["mixture"], **config["evaluate"]["unseen"]}
    return [item["path"].removeprefix("reasoning_gym:") for item in datasets.values()]


@pytest.mark.parametrize("family", [*demo_families(), "arc_agi", "rearc"])
def test_a_generator_finds_its_own_answer_right(family):
    """The verifier is stored as JSON, in which a tuple comes back as a list."""
    import reasoning_gym as gym

    dataset = gym.create_dataset(family, seed=3, size=3)
    for index in range(3):
        entry = dataset[index]
        verifier = json.dumps({"name": family, "entry": entry}, default=str)
        assert score_answer(entry["answer"], reference=None, verifier=verifier) == 1.0


def test_a_wrong_grid_is_still_wrong():
    import reasoning_gym as gym

    entry = gym.create_dataset("rearc", seed=3, size=1)[0]
    verifier = json.dumps({"name": "rearc", "entry": entry}, default=str)
    assert score_answer("9 9\n9 9", reference=None, verifier=verifier) < 0.5


def test_an_answer_that_breaks_the_scorer_is_wrong():
    verifier = json.dumps({"name": "gcd", "entry": {"question": "?", "answer": None, "metadata": {}}})
    assert score_answer("\x00", reference=None, verifier=verifier) == 0.0
