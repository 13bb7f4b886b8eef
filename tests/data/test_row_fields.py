"""What rows say besides text: tools, reasoning, masks, history, labels. Each reaches the text and the mask, or is
refused by its name."""

from __future__ import annotations

import json

import pytest
from chat_tokenizers import CHATML, STRIPPING, make_tokenizer
from test_encode import pieces
from test_formats import parse, say, spoken

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.encode import Encoder
from merit.data.format import choose_format

# As Qwen's: tools in front, reasoning by its key in the last turn, calls as JSON of an object.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + (c.function.arguments | tojson) + '</call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As DeepSeek's: arguments must be text.
TEXT_CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if 'tool_calls' in m %}{% for c in m['tool_calls'] %}"
    "{{ '<call>' + c['function']['name'] + c['function']['arguments'] + '</call>' }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WEATHER = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": WEATHER}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}


def learned(row, template=TOOLS, **config) -> tuple[list[str], str]:
    """The supervised pieces of a row, and its whole text."""
    tokenizer = make_tokenizer(template)
    encoder = Encoder(tokenizer, 2048)
    example = parse(row, **config)
    return pieces(tokenizer, encoder.encode(example)), encoder.layout(example).text


@pytest.mark.parametrize(
    "tools",
    [[WRAPPED], [WEATHER], json.dumps([WEATHER]), WRAPPED, [json.dumps(WEATHER)],
     [{**WRAPPED, "function": {**WEATHER, "strict": None}}]],
)  # fmt: skip
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_go_through_the_template(column, tools):
    found, text = learned({"messages": say("uq", "aa"), column: tools})
    assert text.startswith(f"<|im_start|>system\n{json.dumps(WRAPPED)}<|im_end|>\n")
    assert found == ["a<|im_end|>"]


def test_nulls_of_json_text_are_the_authors_own():
    """Arrow fills objects with nulls; in a schema that is text, a null is a default or one of the values."""
    schema = {"name": "f", "parameters": {"properties": {"a": {"type": "string", "default": None}, "b": None}}}
    for tools in (json.dumps([schema]), [json.dumps(schema)]):
        assert json.dumps(schema) in learned({"messages": say("uq", "aa"), "tools": tools})[1]
    short = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}
    assert json.dumps(short) in learned({"messages": say("uq", "aa"), "tools": [schema]})[1]


def test_tools_of_another_column_and_of_a_pair():
    assert '"weather"' in learned({"question": "q", "answer": "a", "api": [WEATHER]}, columns={"tools": "api"})[1]
    assert '"weather"' not in learned({"question": "q", "answer": "a", "api": [WEATHER]})[1]
    for none in (None, [], "", "[]"):
        assert parse({"messages": say("uq", "aa"), "tools": none}).id == parse({"messages": say("uq", "aa")}).id


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"city": "Ulm", "of": None}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
        {"from": "tool_call", "value": '[{"name": "weather", "arguments": {"city": "Ulm"}}]'},
    ],
)
@pytest.mark.parametrize("template", [TOOLS, TEXT_CALLS])
def test_a_tool_call_is_learned_as_its_template_writes_it(turn, template):
    result = {"from": "observation", "value": "rain"}
    found, text = learned({"messages": [*say("uq"), turn, result, *say("aIt rains.")]}, template)
    assert found == ['<call>weather{"city": "Ulm"}</call><|im_end|>', "It rains.<|im_end|>"]
    assert "<|im_start|>tool\nrain<|im_end|>" in text


def test_a_call_alone_has_no_reference_to_match():
    example = parse({"messages": [*say("uq"), {"role": "assistant", "tool_calls": [CALL]}]})
    assert example.reference is None


def test_text_in_a_calling_turn_stays_text():
    turn = {"from": "function_call", "value": "<call>weather()</call>"}
    assert learned({"messages": [*say("uq"), turn]})[0] == ["<call>weather()</call><|im_end|>"]


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"tools": [WEATHER]}, "tools", "does not show them"),
        ({"messages": [*say("uq"), {"role": "assistant", "tool_calls": [CALL]}]}, "turn 2.tool_calls", "tool calls"),
        (
            {"messages": [*say("uq"), {**say("aa")[0], "reasoning_content": "hm"}]},
            "turn 2.reasoning_content",
            "<think>",
        ),
    ],
)
def test_what_a_template_would_drop_is_refused(row, field, words):
    with pytest.raises(InputError, match=words) as caught:
        learned({"messages": say("uq", "aa"), **row}, CHATML)
    assert caught.value.field == field


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learned_under_the_key_that_the_template_reads(key):
    answer = {**say("aa")[0], key: "hm"}
    assert learned({"messages": [*say("uq"), answer]})[0] == ["<think>hm</think>a<|im_end|>"]
    thinking = TOOLS.replace("reasoning_content", "thinking")
    assert learned({"messages": [*say("uq"), answer]}, thinking)[0] == ["<think>hm</think>a<|im_end|>"]
    if key != "reasoning":
        assert learned({"question": "q", "answer": "a", key: "hm"})[0] == ["<think>hm</think>a<|im_end|>"]
    assert parse({"messages": [*say("uq"), {**answer, key: ""}]}) == parse({"messages": say("uq", "aa")})


def test_reasoning_that_only_earlier_turns_lose_is_the_templates_way():
    answer = {**say("aa")[0], "reasoning_content": "hm"}
    last = TOOLS.replace("if m.reasoning_content", "if m.reasoning_content and loop.last")
    row = {"messages": [*say("uq"), answer, *say("uq2"), {**answer, "reasoning_content": "so"}]}
    assert "<think>so</think>" in learned(row, last)[1]
    never = TOOLS.replace("if m.reasoning_content", "if m.reasoning_content and m.tool_calls")
    with pytest.raises(InputError, match="leaves out the reasoning of this turn") as caught:
        learned({"messages": [*say("uq"), answer]}, never)
    assert caught.value.field == "turn 2.reasoning_content"


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss", "train", "training"])
@pytest.mark.parametrize("template", [CHATML, STRIPPING, TOOLS])
def test_masked_turns_are_context(key, template):
    one, two, three = ({**turn, key: on} for turn, on in zip(say("aone", "atwo", "athree"), (0, 1, False), strict=True))
    row = {"messages": [*say("uq"), one, *say("uq2"), two, *say("uq3"), three]}
    example = parse(row)
    assert spoken(example)[1] == [("assistant", "two")]
    found, text = learned(row, template)
    assert [piece.replace("<think>\n\n</think>\n\n", "") for piece in found] == ["two<|im_end|>"]
    assert "one<|im_end|>" in text
    assert example.reference == "two"
    assert example.id != parse({"messages": say("uq", "aone", "uq2", "atwo")}).id
    # A masked turn between two that are learned stays context.
    between = {"messages": [*say("uq", "afirst", "uq"), one, *say("uq2"), two]}
    assert [piece.split(">")[-2].split("<")[0].strip() for piece in learned(between, CHATML)[0]] == ["first", "two"]
    split = {"prompt": say("uq"), "completion": [one, *say("uq2"), two]}
    assert learned(split, CHATML)[0] == ["two<|im_end|>"]


def test_an_empty_masked_answer_is_no_mistake():
    row = {"messages": [*say("uq"), {"role": "assistant", "content": "", "weight": 0}, *say("uq", "aa")]}
    assert learned(row, CHATML)[0] == ["a<|im_end|>"]


def test_history_becomes_turns():
    row = {"instruction": "q", "input": "more", "output": "a", "history": [["h1", "r1"], ["h2", "r2"]], "system": "S"}
    example = parse(row)
    assert spoken(example) == (
        [("system", "S"), ("user", "h1")],
        [("assistant", "r1"), ("user", "h2"), ("assistant", "r2"), ("user", "q\n\nmore"), ("assistant", "a")],
    )
    assert parse({**row, "history": []}).reference == "a"
    assert spoken(parse({**row, "history": None, "system": None, "system_prompt": "P"}))[0][0] == ("system", "P")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"label": False}, "`label`: false marks a bad answer of preference data, which merit would learn; keep the "
         "rows with true, or set `on_bad_row: skip`"),
        ({"kto_tag": "False"}, "`kto_tag`: false marks a bad answer"),
        ({"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
         "`chosen`: preference data: merit learns the good answers only; append `chosen` to the conversation"),
        ({"videos": ["a.mp4"]}, "`videos`: merit reads text and images only"),
        ({"audio": {"path": "a.wav"}}, "`audio`: merit reads text and images only"),
        ({"tools": "[{"}, "`tools`: is text that is not valid JSON"),
        ({"tools": "no"}, "`tools`: is text that is not valid JSON"),
        ({"tools": [3]}, "`tools[0]`: must be an object with the function's `name`"),
        ({"tools": [{"name": "\ud800"}]}, "`tools`: holds half a surrogate pair, which is no text"),
        ({"tools": 3}, "`tools`: must be a list of functions"),
        ({"history": "x", "instruction": "q", "output": "a"}, "`history`: must be a list of [question, answer]"),
        ({"history": [["x"]], "instruction": "q", "output": "a"}, "`history[0]`: must be [question, answer]"),
    ],
)  # fmt: skip
def test_a_row_that_would_be_misread_is_refused(extra, line):
    kind = {"format": "alpaca"} if "history" in extra else {"format": "qa"}
    with pytest.raises(InputError) as caught:
        parse({"question": "q", "answer": "a", **extra}, **kind)
    assert str(caught.value).startswith(f"f.jsonl:7: {line}")


@pytest.mark.parametrize(
    ("turn", "line"),
    [
        ({"weight": 0.5}, "`messages[1].weight`: must be 0 or 1, true or false, not a number (0.5)"),
        ({"train": "no"}, "`messages[1].train`: must be 0 or 1, true or false, not text ('no')"),
        ({"weight": 1, "train": False}, "`messages[1].train`: contradicts `weight`"),
        ({"weight": 0}, "`messages`: every assistant turn is masked, so there is nothing to learn"),
        ({"training_detail": [{"begin_offset": 0}]}, "`messages[1].training_detail`: a part of a turn cannot"),
        ({"role": "user", "train": True}, "`messages[1].train`: only assistant turns can be learned"),
        ({"role": "user", "reasoning_content": "x"}, "`messages[1].reasoning_content`: only an assistant turn"),
        ({"role": "user", "tool_calls": [CALL]}, "`messages[1].tool_calls`: only an assistant turn"),
        ({"tool_calls": [{"name": "f", "arguments": "x"}]}, "`messages[1].tool_calls[0].arguments`: is text that"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "`messages[1].tool_calls[0].arguments`: must be an object"),
        ({"thinking": True}, "`messages[1].thinking`: must be text, not a truth value (true)"),
    ],
)  # fmt: skip
def test_a_turn_that_would_be_misread_is_refused(turn, line):
    with pytest.raises(InputError) as caught:
        parse({"messages": [*say("uq"), {**say("aa")[0], **turn}]})
    assert str(caught.value).startswith(f"f.jsonl:7: {line}")


def test_a_mapped_column_means_what_the_mapping_says():
    row = {"text": "Is it so?", "label": "false"}
    assert spoken(parse(row, columns={"prompt": "text", "completion": "label"}))[1] == [("assistant", "false")]


def test_what_nothing_reads_is_told_once():
    turn = {**say("aa")[0], "emotion": "glad", "name": "x"}
    rows = [
        {"messages": [*say("uq"), turn], "id": 1, "tag": None},
        {"messages": say("uq", "aa"), "tag": "t", "tools": []},
    ]
    chosen = choose_format(DatasetConfig(path="x"), rows, "x", "mixture.d")
    for number, row in enumerate([*rows, *rows], start=1):
        chosen.parse(row, number)
    assert chosen.unread == {"messages[].emotion": 1, "messages[].name": 1, "id": 1, "tag": 2}


@pytest.mark.parametrize(
    ("extra", "told"),
    [({"label": True}, set()), ({"label": "true"}, set()), ({"label": "spam"}, {"label"}), ({"label": 1}, {"label"}),
     ({"thinking": "hm"}, set()), ({"video": "a.mp4"}, {"video"}), ({"context": "c"}, {"context"})],
)  # fmt: skip
def test_a_column_that_means_nothing_here_is_told(extra, told):
    row = {"question": "q", "answer": "a", **extra}
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    chosen.parse(row, 1)
    assert set(chosen.unread) == told


def test_a_system_message_beside_that_of_the_conversation_is_told():
    for turns, told in (("sother", {"system"}), ("sbrief", set()), ("uq0", set())):
        row = {"system": "brief", "messages": say(turns, "uq", "aa")}
        chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
        assert chosen.parse(row, 1).prompt[0].content == turns[1:] if turns[0] == "s" else "brief"
        assert set(chosen.unread) == told
    row = {"system": "brief", "system_prompt": "long", "prompt": "q", "completion": "a"}
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    assert chosen.parse(row, 1).prompt[0].content == "brief"
    assert set(chosen.unread) == {"system_prompt"}
