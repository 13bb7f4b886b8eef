"""The mask, template by template: what carries loss is read off the token ids, decoded again."""

from __future__ import annotations

import json
from itertools import groupby

import chat_tokenizers as chat
import pytest
from chat_tokenizers import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from merit.base.errors import InputError
from merit.data.encode import Encoder, loses_reasoning, supervised_mask
from merit.data.example import IGNORED, Encoded, Example, Message
from merit.data.template import PLAIN_TEMPLATE


def turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    spoken = tuple(Message(roles[i % 2], content) for i, content in enumerate(contents))
    return (Message("system", system), *spoken) if system else spoken


def conversation(*contents: str, system: str | None = None) -> Example:
    """Everything from the first answer on is completion."""
    messages = turns(*contents, system=system)
    first = next(i for i, message in enumerate(messages) if message.role == "assistant")
    return Example(messages[:first], messages[first:])


def pieces(tokenizer, encoded: Encoded) -> list[str]:
    """The runs of supervised tokens as text."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    runs = [(on, [token for token, _ in run]) for on, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED)]
    return [tokenizer.decode(run, skip_special_tokens=False) for on, run in runs if on]


TWO = ("what is it?", "the answer", "and then?", "hello world")
MASKS = {
    "chatml": (chat.CHATML, ["the answer<|im_end|>", "hello world<|im_end|>"]),
    "headerless": (chat.HEADERLESS, ["the answer<|im_end|>", "hello world<|im_end|>"]),
    "llama3": (chat.LLAMA3, ["the answer<|eot|>", "hello world<|eot|>"]),
    "mistral": (chat.MISTRAL, [" the answer</s>", " hello world</s>"]),
    "llama2": (chat.LLAMA2, [" the answer </s>", " hello world </s>"]),
    "phi3": (chat.PHI3, ["the answer<|eot|>", "hello world<|eot|>\n</s>"]),
    "gpt-oss": (chat.GPT_OSS, ["<|end|>the answer<|eot|>", "<|end|>hello world</s>"]),
    "gemma": (chat.GEMMA, ["the answer<stop>", "hello world<stop>"]),
    "stripping": (chat.STRIPPING, ["the answer<|im_end|>", "<think>\n\n</think>\n\nhello world<|im_end|>"]),
    "opening": (chat.OPENING, ["the answer</s>", "hello world</s>"]),
    "endless": (chat.ENDLESS, ["the answer", "hello world"]),
    "plain": (None, ["the answer</s>", "hello world</s>"]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("trim", [False, True])
def test_every_turn_of_a_completion_is_supervised_through_its_end(name, trim):
    template, expected = MASKS[name]
    tokenizer = make_tokenizer(template, trim=trim)
    encoder = Encoder(tokenizer, 512)
    example = conversation(*TWO)
    encoded = encoder.encode(example)
    assert pieces(tokenizer, encoded) == expected
    assert encoded.supervised == sum(label != IGNORED for label in encoded.labels)
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=False) == encoder.layout(example).text
    assert all(label in (IGNORED, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    # What a report shows is the same; only trimmed offsets lose the space before a word.
    shown = [text for text, loss in encoder.render(example).pieces if loss]
    assert [piece.strip() for piece in shown] == [piece.strip() for piece in expected]


@pytest.mark.parametrize("name", MASKS)
def test_assistant_turns_of_the_prompt_are_not_supervised(name):
    template, expected = MASKS[name]
    tokenizer = make_tokenizer(template)
    messages = turns(*TWO)
    encoded = Encoder(tokenizer, 512).encode(Example(messages[:3], messages[3:]))
    assert pieces(tokenizer, encoded) == expected[1:]


@pytest.mark.parametrize("name", MASKS)
def test_decoding_starts_where_supervision_does(name):
    template, _ = MASKS[name]
    tokenizer = make_tokenizer(template)
    encoder = Encoder(tokenizer, 512)
    example = conversation(*TWO)
    encoded, prompt = encoder.encode(example), encoder.prompt_ids(example)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    if name == "opening":
        assert tokenizer.decode(prompt).endswith("<|A|><think>\n")
    else:
        assert prompt == encoded.input_ids[:first]


def test_a_history_without_its_reasoning_is_supervised_as_it_is_rendered():
    tokenizer = make_tokenizer(chat.STRIPPING)
    example = conversation("q", "<think>\nhm\n</think>\n\nfirst", "q2", "<think>\nwell\n</think>\n\nsecond")
    assert pieces(tokenizer, Encoder(tokenizer, 512).encode(example)) == [
        "first<|im_end|>",
        "<think>\nwell\n</think>\n\nsecond<|im_end|>",
    ]


@pytest.mark.parametrize("template", [chat.LLAMA2, chat.MISTRAL])
@pytest.mark.parametrize("trim", [False, True])
def test_a_space_before_the_answer_that_is_a_token_of_its_own_is_supervised(template, trim):
    """The deployed model is asked without it."""
    tokenizer = make_tokenizer(template, trim=trim)
    encoder = Encoder(tokenizer, 512)
    example = conversation("what is it?", "42", "and then?", "7")
    encoded = encoder.encode(example)
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    runs = [run for on, run in groupby(encoded.labels, key=lambda label: label != IGNORED) if on for run in [list(run)]]
    assert [run[: len(space)] for run in runs] == [space, space]
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is it?"}], add_generation_prompt=True, tokenize=False
    )
    assert encoder.prompt_ids(example) == tokenizer(asked, add_special_tokens=False)["input_ids"]


def test_a_token_that_opens_the_next_turn_does_not_end_one():
    with pytest.raises(InputError, match="renders this turn differently"):
        Encoder(make_tokenizer(chat.LAST_ENDS), 512).encode(conversation(*TWO))
    one = Encoder(tokenizer := make_tokenizer(chat.LAST_ENDS), 512).encode(conversation(*TWO[:2]))
    assert pieces(tokenizer, one) == ["the answer</s>"]


def test_bos_is_there_once():
    for template in (chat.LLAMA3, None):
        tokenizer = make_tokenizer(template, adds_bos=True)
        ids = Encoder(tokenizer, 512).encode(conversation("hello", "world")).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
    # A template without bos means none, whatever the tokenizer does to plain text.
    tokenizer = make_tokenizer(chat.CHATML, adds_bos=True)
    assert tokenizer.bos_token_id not in Encoder(tokenizer, 512).encode(conversation("hello", "world")).input_ids


def test_the_plain_template_by_hand():
    encoder = Encoder(make_tokenizer(None), 512)
    layout = encoder.layout(conversation("hello", "world", system="be kind"))
    assert layout.text == "### System:\nbe kind\n\n### User:\nhello\n\n### Assistant:\nworld</s>\n\n"
    assert layout.prompt == "### System:\nbe kind\n\n### User:\nhello\n\n### Assistant:\n"
    assert [layout.text[start:end] for start, end in layout.spans] == ["world</s>"]
    assert encoder.template.source == PLAIN_TEMPLATE
    assert not Encoder(make_tokenizer(None, eos=None), 512).template.ends_turns


def test_truncation_cuts_the_end_and_keeps_the_tokens_before_it():
    tokenizer = make_tokenizer()
    example = conversation("what is it?", "the quick brown fox")
    whole = Encoder(tokenizer, 512).encode(example)
    assert not whole.truncated
    for length in range(8, len(whole.input_ids)):
        cut = Encoder(tokenizer, length).encode(example)
        assert cut.truncated
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.labels == whole.labels[:length]
    assert Encoder(tokenizer, 8).encode(example).supervised == 0
    assert not Encoder(tokenizer, len(whole.input_ids)).encode(example).truncated


def test_what_was_cut_is_not_shown():
    encoder = Encoder(make_tokenizer(), 24)
    rendered = encoder.render(conversation("what is it?", "the quick brown fox " * 20))
    [(start, end)] = rendered.spans
    assert end == len(rendered.text)
    assert "<|im_end|>" not in rendered.text[start:end]


def test_a_conversation_may_begin_with_the_assistant():
    tokenizer = make_tokenizer()
    example = Example((), (Message("assistant", "hello"), Message("user", "q"), Message("assistant", "world")))
    encoder = Encoder(tokenizer, 512)
    assert pieces(tokenizer, encoder.encode(example)) == ["hello<|im_end|>", "world<|im_end|>"]
    assert tokenizer.decode(encoder.prompt_ids(example)) == "<|im_start|>assistant\n"


def test_prompt_ids_need_no_completion():
    tokenizer = make_tokenizer()
    prompt = turns("hello")
    ids = Encoder(tokenizer, 512).prompt_ids(Example(prompt, ()))
    assert ids == Encoder(tokenizer, 512).prompt_ids(Example(prompt, (Message("assistant", "world"),)))
    # Nor room for one.
    assert Encoder(tokenizer, 8).prompt_ids(conversation("hello", "world")) == ids


@pytest.mark.parametrize(
    ("template", "example", "words"),
    [
        (chat.MISTRAL, Example((*turns("a"), *turns("b")), turns("", "c")[1:]), "roles must alternate"),
        (chat.GEMMA, conversation("a", "b", system="s"), "no system role"),
        (chat.SHIFTING, conversation("a", "b", "c", "d"), "differently|drops or repeats"),
        (
            "{% for m in messages %}{{ m['role'] }}{% endfor %}",
            conversation("a", "b", "c", "d"),
            "drops or repeats|nothing",
        ),
        ("{{ messages[0]['content'] }}", conversation("a", "b"), "drops or repeats|nothing"),
        ("{{ messages[5]['content'] }}", conversation("a", "b"), "refuses"),
    ],
)
def test_a_template_that_hides_a_turn_is_refused(template, example, words):
    with pytest.raises(InputError, match=words) as caught:
        Encoder(make_tokenizer(template), 512).encode(example)
    assert "\n" not in str(caught.value)


def test_todays_date_does_not_enter_the_data():
    template = "{{ strftime_now('%d %b %Y') }}" + chat.CHATML
    text = Encoder(make_tokenizer(template), 512).layout(conversation("a", "b")).text
    assert text.startswith("26 Jul 2024<|im_start|>")


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="fast"):
        Encoder(Slow(), 512)


def test_the_fingerprint_follows_content_not_calls():
    one, two = make_tokenizer(), make_tokenizer()
    two("some text", truncation=True, max_length=3, padding="max_length") if two.pad_token else two(
        "some text", truncation=True, max_length=3
    )
    assert Encoder(one, 8).fingerprint == Encoder(two, 512).fingerprint
    assert Encoder(make_tokenizer(chat.LLAMA3), 8).fingerprint != Encoder(one, 8).fingerprint
    assert Encoder(make_tokenizer(eos="<|im_end|>"), 8).fingerprint != Encoder(one, 8).fingerprint


def test_many_at_once_are_as_one_by_one():
    encoder = Encoder(make_tokenizer(), 40)
    examples = [conversation("q " * n, "a " * n) for n in range(1, 20)]
    layouts = [encoder.layout(example) for example in examples]
    assert encoder.encode_layouts(layouts) == [
        (encoder.encode(example), encoder.prompt_ids(example)) for example in examples
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text == text.strip() and text.strip() and "think>" not in text
)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), trim=st.booleans(), name=st.sampled_from([
    ("chatml", "<|im_end|>"), ("llama3", "<|eot|>"), ("gemma", "<stop>"), ("headerless", "<|im_end|>"),
]))  # fmt: skip
def test_any_text_is_supervised_whole(contents, trim, name):
    """Emoji over several tokens, combining marks, tabs: the supervised tokens decode to the answer and its end."""
    template, end = MASKS[name[0]][0], name[1]
    tokenizer = make_tokenizer(template, trim=trim)
    encoded = Encoder(tokenizer, 4096).encode(conversation(*[text for pair in contents for text in pair]))
    assert pieces(tokenizer, encoded) == [answer + end for _, answer in contents]


def test_the_mask_by_hand():
    import numpy as np

    # Characters 0..10, span [3, 7). Tokens: before, across its start, inside, across its end, after.
    offsets = np.array([[0, 2], [2, 4], [4, 6], [6, 8], [8, 10]])
    assert supervised_mask(offsets, [(3, 7)]).tolist() == [False, True, True, True, False]
    assert supervised_mask(offsets, [(4, 6)]).tolist() == [False, False, True, False, False]
    # Trimmed white space has an empty range at its right end.
    offsets = np.array([[3, 3], [3, 5], [6, 6], [6, 7], [8, 8]])
    assert supervised_mask(offsets, [(3, 7)]).tolist() == [False, True, True, True, False]


def test_a_prompt_that_repeats_the_answer_is_not_marked():
    rendered = Encoder(make_tokenizer(), 512).render(conversation("say hello", "hello"))
    [(start, end)] = rendered.spans
    assert rendered.text[start:end].startswith("hello")
    assert start > rendered.text.index("hello")
    assert rendered.pieces == [(rendered.text[:start], False), (rendered.text[start:end], True)] + (
        [(rendered.text[end:], False)] if rendered.text[end:] else []
    )


def test_reasoning_that_a_template_strips_is_noticed_in_content_and_under_its_key():
    key = Message("assistant", "4", fields=json.dumps({"reasoning": "two and two"}))
    inside = Message("assistant", "<think>two and two</think>4")
    for turn in (key, inside):
        example = Example(prompt=(Message("user", "2 + 2"),), completion=(turn,))
        assert loses_reasoning(example, "2 + 2 … 4")
        assert not loses_reasoning(example, "2 + 2 … <think>\ntwo and two\n</think>4")
    assert not loses_reasoning(Example(prompt=(), completion=(Message("assistant", "4"),)), "4")
