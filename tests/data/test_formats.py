"""Formats: what a row becomes, and the one line that a wrong row gets."""

from __future__ import annotations

import json

import pytest

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.example import Example, Message
from merit.data.format import choose_format


def parse(row, rows=None, **config) -> Example:
    chosen = choose_format(DatasetConfig(path="f.jsonl", **config), rows or [row], "f.jsonl", "mixture.d")
    return chosen.parse(row, 7)


def spoken(example: Example) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return [(m.role, m.content) for m in example.prompt], [(m.role, m.content) for m in example.completion]


def say(*turns: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[1:]} for turn in turns]


QA = ([("user", "q")], [("assistant", "a")])


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"messages": say("uq", "aa")}, "messages", QA),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", QA),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", QA),
        ({"instruction": "q", "output": "a"}, "alpaca", QA),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt", QA),
        ({"question": "q", "answer": "a", "id": 4}, "qa", QA),
        ({"instruction": "q", "input": "more", "output": "a"}, "alpaca", ([("user", "q\n\nmore")], QA[1])),
        # Other people's mixtures of the two ways to write a turn.
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "messages", QA),
        ({"conversations": say("uq", "aa")}, "sharegpt", QA),
        # Arrow fills up what other rows have with null.
        ({"messages": [{"role": "user", "content": "q", "value": None}, *say("aa")]}, "messages", QA),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *say("aa")]}, "messages", QA),
    ],
)  # fmt: skip
def test_formats_are_detected_and_read(row, name, expected):
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    assert chosen.name == name
    assert spoken(chosen.parse(row, 1)) == expected


def test_a_conversation_is_completed_from_its_first_answer_on():
    example = parse({"messages": say("sbe kind", "uq", "aa", "uq2", "tt", "aa2", "uthanks")})
    assert spoken(example) == (
        [("system", "be kind"), ("user", "q")],
        [("assistant", "a"), ("user", "q2"), ("tool", "t"), ("assistant", "a2")],
    )
    assert example.reference is None


def test_prompts_and_completions_may_be_messages():
    example = parse({"prompt": say("uq", "aa", "uq2"), "completion": say("aa2")})
    assert spoken(example) == ([("user", "q"), ("assistant", "a"), ("user", "q2")], [("assistant", "a2")])
    assert example.reference == "a2"
    assert spoken(parse({"prompt": "q", "completion": say("aa")})) == QA


def test_columns_are_mapped():
    row = {"frage": "q", "antwort": "the long way to 4", "ergebnis": "4", "rolle": "be kind"}
    columns = {"prompt": "frage", "completion": "antwort", "reference": "ergebnis", "system": "rolle"}
    example = parse(row, columns=columns)
    assert spoken(example) == ([("system", "be kind"), ("user", "q")], [("assistant", "the long way to 4")])
    assert example.reference == "4"
    assert parse({"question": "q", "solution": "a"}, columns={"completion": "solution"}, format="qa").reference == "a"
    assert spoken(parse({"chat": say("uq", "aa")}, columns={"messages": "chat"})) == QA


def test_the_system_message():
    row = {"question": "q", "answer": "a"}
    assert spoken(parse(row, system="S"))[0] == [("system", "S"), ("user", "q")]
    assert spoken(parse({**row, "system": "own"}, system="S"))[0] == [("system", "own"), ("user", "q")]
    assert spoken(parse({**row, "system": ""}, system="S"))[0] == [("system", "S"), ("user", "q")]
    assert spoken(parse({"messages": say("sown", "uq", "aa")}, system="S"))[0] == [("system", "own"), ("user", "q")]


def test_ids_depend_on_the_conversation_alone():
    one = parse({"question": "q", "answer": "a", "source": "x"})
    assert one.id == parse({"messages": say("uq", "aa")}).id
    assert one.id != parse({"question": "q", "answer": "a "}).id
    assert len(one.id) == 32
    # Where a turn ends matters, not only the text of all.
    assert Example((Message("user", "ab"),), (Message("assistant", "c"),)).id != Example(
        (Message("user", "a"),), (Message("assistant", "bc"),)
    ).id  # fmt: skip


MESSAGES = {"messages": say("uq", "aa")}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": say("uq")}, "`messages`: no assistant turn, so there is nothing to learn"),
        ({"messages": []}, "`messages`: no assistant turn, so there is nothing to learn"),
        ({"messages": "hello"}, "`messages`: must be a list of messages, not text ('hello')"),
        ({"messages": None}, "`messages`: is null; a row needs it"),
        ({"message": []}, "`messages`: missing; the row has message; did you mean `message`?"),
        ({"messages": [*say("uq", "aa"), {"role": "asistant", "content": "x"}]},
         "`messages[2].role`: unknown role 'asistant'; did you mean `assistant`?"),
        ({"messages": [{"role": "zzz", "content": "x"}]},
         "`messages[0].role`: unknown role 'zzz'; known: system, user, assistant, tool"),
        ({"messages": [{"role": 3, "content": "x"}]}, "`messages[0].role`: must be text, not a number (3)"),
        ({"messages": [{"content": "x"}]}, "`messages[0].role`: missing"),
        ({"messages": [{"role": "user"}]}, "`messages[0].content`: missing"),
        ({"messages": [{"role": "user", "content": None}]}, "`messages[0].content`: missing"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "`messages[0].content`: must be text, not an object"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
         "`messages[0].content[0].type`: only text and image parts are supported, not 'audio'"),
        ({"messages": ["hello"]}, "`messages[0]`: must be an object with `role` and `content`, not text ('hello')"),
        ({"messages": say("uq", "a  ")}, "`messages[1].content`: the completion is empty"),
        ({"messages": say("uq", "aa", "uq", "a")}, "`messages[3].content`: the completion is empty"),
        ({"messages": [*say("uq"), {"role": "assistant", "content": "", "tool_calls": [1]}]},
         "`messages[1].tool_calls[0]`: must be an object with the function's `name`"),
        ({"messages": say("u\ud800", "aa")}, "`messages[0].content`: holds half a surrogate pair, which is no text"),
        ([1], "a row must be an object, not list"),
    ],
)  # fmt: skip
def test_a_wrong_conversation_gets_one_line(row, line):
    with pytest.raises(InputError) as caught:
        parse(row, rows=[MESSAGES])
    assert str(caught.value) == f"f.jsonl:7: {line}"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question": "q", "answer": ""}, "`answer`: the completion is empty"),
        ({"question": "q", "answer": " \n"}, "`answer`: the completion is empty"),
        ({"question": "q", "answer": 42}, "`answer`: must be text, not a number (42)"),
        ({"question": True, "answer": "a"}, "`question`: must be text, not a truth value (true)"),
        ({"question": ["q"], "answer": "a"}, "`question`: must be text, not a list"),
        ({"question": "q", "answer": None}, "`answer`: is null; a row needs it"),
        ({"question": "q", "text": "a"}, "`answer`: missing; the row has question, text"),
        ({}, "`question`: missing; the row has no columns"),
        ({"question": "q", "answer": "a", "system": 1}, "`system`: must be text, not a number (1)"),
    ],
)
def test_a_wrong_answer_gets_one_line(row, line):
    with pytest.raises(InputError) as caught:
        parse(row, rows=[{"question": "q", "answer": "a"}])
    assert str(caught.value) == f"f.jsonl:7: {line}"


@pytest.mark.parametrize(
    ("config", "row", "line"),
    [
        ({"columns": {"prompt": "questoin"}}, {"question": "q", "answer": "a"},
         "`mixture.d.columns.prompt`: there is no column 'questoin'; it has answer, question; did you "
         "mean `question`?"),
        ({}, {"words": "x"},
         "`mixture.d.format`: no known format fits (words); name the columns, e.g. columns: {prompt: question, "
         "completion: answer}"),
        ({}, {}, "`mixture.d.format`: no known format fits (no columns); name the columns, e.g. columns: "
         "{prompt: question, completion: answer}"),
        ({"format": "qa", "columns": {"messages": "answer"}}, {"question": "q", "answer": "a"},
         "`mixture.d.columns.messages`: the format `qa` has no 'messages'; it has prompt, completion"),
    ],
)  # fmt: skip
def test_a_format_that_does_not_fit_gets_one_line(config, row, line):
    with pytest.raises(InputError) as caught:
        choose_format(DatasetConfig(path="f.jsonl", **config), [row], "f.jsonl", "mixture.d")
    assert str(caught.value) == f"f.jsonl: {line}"


def test_a_named_format_meets_other_rows():
    with pytest.raises(InputError, match=r"^f\.jsonl:7: `messages`: missing; the row has question, answer$"):
        parse({"question": "q", "answer": "a"}, format="messages")


def test_detection_looks_beyond_a_first_row_that_lacks_a_column():
    rows = [{"question": "q"}, {"question": "q", "answer": "a"}]
    assert choose_format(DatasetConfig(path="x"), rows, "x", "mixture.d").name == "qa"
    assert choose_format(DatasetConfig(path="x"), [[1], "a"], "x", "mixture.d").name == "messages"


SUM = {"instruction": "Add.", "input": "1 and 2", "response": "3"}
ADDED = ([("user", "Add.\n\n1 and 2")], [("assistant", "3")])


@pytest.mark.parametrize(
    ("row", "columns", "name", "expected"),
    [
        (SUM, {"prompt": "instruction", "completion": "response"}, "alpaca", ADDED),
        (SUM, {"completion": "response"}, "alpaca", ADDED),
        (SUM, {}, "alpaca", ADDED),
        ({"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "x"}, {}, "alpaca", ADDED),
        ({"instruction": "Add.", "context": "1 and 2", "response": "3"},
         {"prompt": "instruction", "completion": "response", "input": "context"}, "alpaca", ADDED),
        ({"task": "Add.", "with": "1 and 2", "result": "3"},
         {"prompt": "task", "completion": "result", "input": "with"}, "alpaca", ADDED),
        ({"instruction": "q", "response": "a"}, {"prompt": "instruction", "completion": "response"},
         "prompt_completion", QA),
        ({"instruction": "q", "response": "a"}, {}, "alpaca", QA),
        *(({one: "q", two: "a"}, {}, "prompt_completion", QA)
          for one, two in (("prompt", "response"), ("input", "target"), ("inputs", "targets"), ("input", "output"),
                           ("problem", "solution"), ("query", "response"))),
        ({"question": "q", "response": "a"}, {}, "qa", QA),
        ({"dialog": say("uq", "aa")}, {}, "messages", QA),
        ({"conversation": say("uq", "aa")}, {}, "messages", QA),
    ],
)  # fmt: skip
def test_other_spellings_keep_every_part(row, columns, name, expected):
    chosen = choose_format(DatasetConfig(path="x", columns=columns), [row], "x", "mixture.d")
    assert chosen.name == name
    assert spoken(chosen.parse(row, 1)) == expected
    assert set(chosen.unread) <= {"category"}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "i", "input": "q", "target": "a"},
        {"context": "c", "input": "q", "output": "a"},
        {"prompt": "q", "response": "a", "rejected": "b"},
        {"text": "q", "label": "a"},
    ],
)
def test_a_spelling_that_would_drop_a_part_does_not_fit(row):
    with pytest.raises(InputError, match="no known format fits"):
        parse(row)


def test_preference_data_are_refused_with_what_to_do():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match=r"preference data: .*columns: \{completion: chosen\}"):
        parse(row)
    assert spoken(parse(row, columns={"completion": "chosen"})) == QA
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    for columns in ({}, {"completion": "chosen"}):
        with pytest.raises(InputError, match="`chosen` holds a whole conversation as text: make it a list of turns"):
            parse(row, columns=columns)
    row = {"chosen": say("uq", "aa"), "rejected": say("uq", "ab")}
    with pytest.raises(InputError, match=r"columns: \{messages: chosen\}"):
        parse(row)
    assert spoken(parse(row, columns={"messages": "chosen"})) == QA


LINES = "q\n\nA. one\nB. two"


@pytest.mark.parametrize(
    "row",
    [
        {"question": {"stem": "q", "choices": [{"text": "one", "label": "A"}, {"text": "two", "label": "B"}]},
         "answerKey": "B"},
        {"question": "q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "choices": [{"label": "A", "text": "one"}, {"label": "B", "text": "two"}], "answerKey": "B"},
        {"question_stem": "q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "choices": ["one", "two"], "answer": 1, "subject": "x"},
        {"question": "q", "choices": ["one", "two"], "answerKey": "B"},
    ],
)  # fmt: skip
def test_multiple_choice(row):
    example = parse(row)
    assert spoken(example) == ([("user", LINES)], [("assistant", "B. two")])
    assert example.reference == "B. two"


def test_an_answer_in_words_is_no_multiple_choice():
    row = {"question": "q", "choices": ["a", "b"], "answer": "a"}
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    assert (chosen.name, spoken(chosen.parse(row, 1)), chosen.unread) == ("qa", QA, {"choices": 1})


def test_labels_may_be_numbers_and_columns_mapped():
    row = {"frage": "q", "optionen": {"text": ["one", "two"], "label": ["1", "2"]}, "richtig": "2"}
    columns = {"prompt": "frage", "choices": "optionen", "completion": "richtig"}
    assert spoken(parse(row, columns=columns, format="multiple_choice")) == (
        [("user", "q\n\n1. one\n2. two")],
        [("assistant", "2. two")],
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"answerKey": "C"}, "`answerKey`: names no choice; there are A, B, not text ('C')"),
        ({"answerKey": 2}, "`answerKey`: names no choice; there are A, B, not a number (2)"),
        ({"answerKey": None}, "`answerKey`: is null; a row needs it"),
        ({"choices": ["one"]}, "`choices`: must be a list of 2 to 26 choices"),
        ({"choices": {"text": ["one", "two"], "label": ["A"]}}, "`choices`: must have one label a choice"),
        ({"choices": ["one", 2]}, "`choices`: must be text, not a number (2)"),
    ],
)
def test_a_wrong_choice_gets_one_line(row, line):
    with pytest.raises(InputError) as caught:
        parse({"question": "q", "choices": ["one", "two"], "answerKey": "A", **row}, format="multiple_choice")
    assert str(caught.value) == f"f.jsonl:7: {line}"


def test_content_parts_may_be_text_or_hold_a_value():
    parts = [{"type": "text", "value": "q"}, "u", {"type": "input_text", "text": "!"}]
    example = parse({"messages": [{"role": "user", "content": parts}, *say("aa")]})
    assert spoken(example)[0] == [("user", "qu!")]


def test_a_conversation_as_json_text():
    turns = [*say("sS", "uq"), {**say("aa")[0], "emotion": "glad"}]
    row = {"messages": json.dumps(turns)}
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    assert chosen.parse(row, 1) == parse({"messages": turns})
    assert chosen.unread == {"messages[].emotion": 1}
    with pytest.raises(InputError, match="`messages`: is text, but not the JSON of a list of messages; write it with"):
        parse({"messages": str(turns)})
    # A prompt or a completion that is text stays what it is.
    row = {"prompt": "[1, 2]", "completion": json.dumps(["a", "b"])}
    assert spoken(parse(row)) == ([("user", "[1, 2]")], [("assistant", '["a", "b"]')])


def test_texts_that_speak_in_turn():
    expected = ([("user", "q")], [("assistant", "a"), ("user", "r"), ("assistant", "b")])
    assert spoken(parse({"conversations": ["q", "a", "r", "b"], "source": "x"})) == expected
    assert spoken(parse({"id": 1, "data": ["q", "a", "r", "b", "end"]}, columns={"messages": "data"})) == expected
    with pytest.raises(InputError, match=r"`conversations\[0\]`: must be an object"):
        parse({"conversations": ["q"]})


def test_nan_is_nothing():
    nan = float("nan")
    row = {"instruction": "q", "input": nan, "output": "a", "system": nan, "score": nan}
    chosen = choose_format(DatasetConfig(path="x"), [row], "x", "mixture.d")
    assert spoken(chosen.parse(row, 1)) == QA
    assert not chosen.unread
    with pytest.raises(InputError, match="`output`: is null; a row needs it"):
        chosen.parse({"instruction": "q", "output": nan}, 2)


def test_an_input_without_an_instruction_stands_alone():
    assert spoken(parse({"instruction": " ", "input": "q", "output": "a"})) == QA


def test_raw_text_is_refused_with_what_to_do():
    with pytest.raises(InputError, match="raw text: merit learns answers; split `text` into a prompt and a completion"):
        parse({"text": "### Human: q### Assistant: a"})
    with pytest.raises(InputError, match="no known format fits"):
        parse({"text": "q", "label": "a"})


def test_exchanges_under_the_speakers_names():
    example = parse({"conversation": [{"system": "S", "human": "q", "assistant": "a"}, {"input": "q2", "output": "b"}]})
    assert spoken(example) == (
        [("system", "S"), ("user", "q")],
        [("assistant", "a"), ("user", "q2"), ("assistant", "b")],
    )
    with pytest.raises(InputError, match=r"`conversation\[0\].input`: a second text of the same speaker"):
        parse({"conversation": [{"human": "q", "input": "x", "assistant": "a"}]})


def test_a_query_with_a_history_keeps_it():
    example = parse({"query": "q", "response": "a", "history": [["h", "r"]]})
    assert spoken(example) == ([("user", "h")], [("assistant", "r"), ("user", "q"), ("assistant", "a")])


def test_a_context_can_be_mapped_beside_a_question():
    row = {"question": "q", "context": "c", "answer": "a"}
    columns = {"prompt": "question", "completion": "answer", "input": "context"}
    assert spoken(parse(row, columns=columns)) == ([("user", "q\n\nc")], [("assistant", "a")])
