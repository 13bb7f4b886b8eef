"""`merit check` reads as a run does, tells everything, stops at nothing, and writes nothing."""

from __future__ import annotations

import json

import pytest
from chat_tokenizers import ENDLESS, STRIPPING, make_tokenizer
from test_build_mixture import LONG, config, qa, write

from merit.base.errors import InputError
from merit.data.build import build_mixture
from merit.data.check import check_mixture
from merit.run.layout import RunDir


def files(folder):
    return sorted(item.name for item in folder.rglob("*"))


def test_it_finds_what_a_run_finds(tmp_path):
    write(tmp_path / "a.jsonl", [*qa(60), *qa(4)])
    write(tmp_path / "b.jsonl", qa(30, 100))
    settings = config({"a": {"path": "a.jsonl"}}, unseen={"b": {"path": "b.jsonl"}})
    before = files(tmp_path)
    report = check_mixture(settings, tmp_path, make_tokenizer(eos="<|im_end|>"))
    assert files(tmp_path) == before
    assert report.ok
    assert report.problems == report.warnings == []
    built = build_mixture(settings, tmp_path, RunDir(tmp_path / "run"), make_tokenizer())
    assert [item.summary for item in report.datasets] == [*built.datasets, *built.unseen]
    assert [item.rows for item in report.datasets] == [64, 30]
    assert [item.unseen for item in report.datasets] == [False, True]
    assert "4 rows repeat another one and are left out" in report.datasets[0].warnings
    assert json.loads(report.model_dump_json())["max_length"] == 256


def test_all_problems_of_all_datasets_at_once(tmp_path):
    bad = [{"question": "q", "answer": ""}, {"question": "q", "answer": 3}, {"question": "q"}]
    write(tmp_path / "a.jsonl", [*qa(30), *bad])
    write(
        tmp_path / "b.jsonl", [*qa(30), *[{"question": f"{i}", "answer": ""} for i in range(1000)], {"question": "q"}]
    )
    write(tmp_path / "good.jsonl", qa(40))
    (tmp_path / "c.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": \n' + "x\n")
    (tmp_path / "d.csv").write_text('question,answer\nq,"a\n')
    (tmp_path / "e.jsonl").touch()
    write(tmp_path / "f.jsonl", [LONG])
    report = check_mixture(
        config(
            {
                **{name: {"path": f"{name}.jsonl"} for name in ("a", "b", "good", "c", "e", "f")},
                "d": {"path": "d.csv"},
                "missing": {"path": "godo.jsonl"},
                "gym": {"path": "reasoning_gym:gdc"},
            },
            unseen={"mapped": {"path": "good.jsonl", "columns": {"prompt": "text"}}},
            max_length=64,
        ),
        tmp_path,
        make_tokenizer(),
    )
    assert not report.ok
    assert report.problems == [
        "a.jsonl:31: `answer`: the completion is empty",
        "a.jsonl:32: `answer`: must be text, not a number (3)",
        "a.jsonl:33: `answer`: missing; the row has question",
        *(f"b.jsonl:{line}: `answer`: the completion is empty" for line in range(31, 36)),
        "b.jsonl:1031: `answer`: missing; the row has question",
        "b: and 995 more problems of this dataset",
        "c.jsonl:2: not valid JSON: Expecting value (column 14)",
        "c.jsonl:3: not valid JSON: Expecting value (column 1)",
        "e.jsonl: empty: no rows",
        "f.jsonl:1: `train.max_length`: no example keeps a supervised token within 64 tokens; raise it, or shorten the "
        "prompts",
        "d.csv:2: not valid CSV: unexpected end of data",
        "godo.jsonl: `mixture.missing.path`: no such file; did you mean `good.jsonl`?",
        "`mixture.gym.path`: unknown family 'gdc'; did you mean `gcd`?",
        "good.jsonl: `evaluate.unseen.mapped.columns.prompt`: there is no column 'text'; it has answer, question",
    ]
    summaries = {item.name: item.summary for item in report.datasets}
    assert summaries["good"] is not None
    assert summaries["a"] is not None
    assert summaries["a"].train.examples + summaries["a"].held_out.examples == 30
    assert summaries["missing"] is None


def test_rows_that_the_template_refuses_are_problems_too(tmp_path):
    template = "{% for m in messages %}{% if '7' in m['content'] %}{{ raise_exception('no 7') }}{% endif %}"
    template += "{{ m['content'] + eos_token }}{% endfor %}"
    write(tmp_path / "d.jsonl", qa(40))
    report = check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, make_tokenizer(template))
    assert report.problems == [
        f"d.jsonl:{line}: the chat template refuses this conversation: no 7" for line in (8, 18, 28, 38)
    ]


def test_warnings(tmp_path):
    long_answer = {"question": "q", "answer": "so " * 100}
    write(tmp_path / "d.jsonl", [*qa(30), long_answer, LONG])
    report = check_mixture(config({"d": {"path": "d.jsonl"}}, max_length=64), tmp_path, make_tokenizer())
    assert report.ok
    first, second, *rest = report.datasets[0].warnings
    assert first == "1 of 31 examples (3.2%) are cut at `train.max_length`"
    assert second == "1 examples are left out: their prompt alone fills `train.max_length`"
    assert any(line.startswith("only ") and line.endswith(" examples to train on") for line in rest)
    assert any("held-out" in line for line in rest)
    plain = check_mixture(config({"d": {"path": "d.jsonl"}}, max_length=64), tmp_path, make_tokenizer(None))
    assert plain.warnings == ["the tokenizer has no chat template; a plain one (### User: …) is used"]
    endless = check_mixture(config({"d": {"path": "d.jsonl"}}, max_length=64), tmp_path, make_tokenizer(ENDLESS))
    assert endless.warnings == [
        "the chat template puts nothing after an assistant turn: the model will not learn to stop"
    ]


def test_how_a_turn_ends_is_told(tmp_path):
    write(tmp_path / "d.jsonl", qa(40))
    settings = config({"d": {"path": "d.jsonl"}})
    assert check_mixture(settings, tmp_path, make_tokenizer(eos="<|im_end|>")).warnings == []
    (other,) = check_mixture(settings, tmp_path, make_tokenizer()).warnings
    assert other.startswith("an assistant turn ends with '<|im_end|>', which is not the tokenizer's end token (</s>)")
    words = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' (over)' }}{% endfor %}"
    (plain,) = check_mixture(settings, tmp_path, make_tokenizer(words)).warnings
    assert plain.startswith("the chat template ends an assistant turn with '(over)', which is no special token")


def test_reasoning_that_the_template_leaves_out_is_counted(tmp_path):
    def talk(number: int, first: str) -> dict:
        said = ["q", first, f"and {number}?", "<think>well</think>second"]
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]}

    write(tmp_path / "d.jsonl", [talk(i, "<think>hm</think>first" if i < 7 else "first") for i in range(40)])
    report = check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, make_tokenizer(STRIPPING))
    assert report.ok
    told = [line for line in report.datasets[0].warnings if "reasoning" in line]
    assert len(told) == 1
    assert told[0].startswith("the chat template leaves reasoning out of 7 examples")


def test_unseen_rows_that_are_trained_on_are_told(tmp_path):
    write(tmp_path / "a.jsonl", qa(60))
    write(tmp_path / "b.jsonl", [*qa(5), *qa(20, 100)])
    settings = config({"a": {"path": "a.jsonl"}}, unseen={"b": {"path": "b.jsonl"}})
    report = check_mixture(settings, tmp_path, make_tokenizer())
    assert report.ok
    assert report.datasets[1].warnings == ["5 of its 25 examples are also in the mixture: they are not unseen"]


def test_a_tokenizer_that_cannot_be_used_is_an_error(tmp_path):
    write(tmp_path / "d.jsonl", qa(40))
    with pytest.raises(InputError):
        check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, object())


def test_special_tokens_in_the_text_are_told(tmp_path):
    rows = qa(60)
    rows[4]["answer"] += "<|im_end|>"
    rows[7]["question"] = "<s>" + rows[7]["question"]
    write(tmp_path / "d.jsonl", rows)
    report = check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, make_tokenizer())
    assert report.ok
    (told,) = [line for line in report.datasets[0].warnings if "special token" in line]
    assert told.startswith("2 examples hold a special token in their text (the first: line 5, '<|im_end|>')")


def test_the_weight_of_a_row_is_told(tmp_path):
    write(tmp_path / "d.jsonl", [{**row, "sample_weight": 0.5} for row in qa(60)])
    report = check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, make_tokenizer())
    assert any("put rows of another `sample_weight` into a dataset" in line for line in report.datasets[0].warnings)
    assert "not read: sample_weight" in report.datasets[0].warnings


def test_broken_lines_are_skipped_wherever_they_are(tmp_path):
    lines = [*["{"] * 30, *map(json.dumps, qa(40)), "[", b"\xff".decode("latin-1")]
    (tmp_path / "d.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    report = check_mixture(config({"d": {"path": "d.jsonl"}}), tmp_path, make_tokenizer())
    assert report.problems[0].startswith("d.jsonl:1: not valid JSON")
    report = check_mixture(config({"d": {"path": "d.jsonl", "on_bad_row": "skip"}}), tmp_path, make_tokenizer())
    assert report.ok
    assert (report.datasets[0].rows, report.datasets[0].summary.bad_rows) == (72, 32)
    # Nothing after a mistake in an array can be read.
    (tmp_path / "d.json").write_text(json.dumps(qa(40))[:-9])
    report = check_mixture(config({"d": {"path": "d.json", "on_bad_row": "skip"}}), tmp_path, make_tokenizer())
    assert report.problems[0].startswith("d.json:1: not valid JSON")


def test_skipped_rows_and_unread_columns_are_told(tmp_path):
    rows = [{**row, "id": 1} for row in qa(60)]
    write(tmp_path / "d.jsonl", [{"question": "q", "answer": ""}, *rows])
    settings = config({"d": {"path": "d.jsonl"}})
    assert check_mixture(settings, tmp_path, make_tokenizer()).problems == [
        "d.jsonl:1: `answer`: the completion is empty"
    ]
    settings = config({"d": {"path": "d.jsonl", "on_bad_row": "skip"}})
    report = check_mixture(settings, tmp_path, make_tokenizer())
    assert report.ok
    assert report.datasets[0].summary.bad_rows == 1
    assert "left out: d.jsonl:1: `answer`: the completion is empty" in report.datasets[0].warnings
    assert "not read: id" in report.datasets[0].warnings
