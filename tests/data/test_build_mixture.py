"""The data stage end to end: counts by hand, moves no row, resumes, refuses, leaves nothing behind."""

from __future__ import annotations

import errno
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizers import ENDLESS, make_tokenizer

from merit.base.errors import InputError, StageError
from merit.config import RunConfig
from merit.config.run import resolve_paths
from merit.config.sections import PrepareConfig
from merit.data import build, store
from merit.data.build import build_mixture, source_fingerprints
from merit.data.check import check_mixture
from merit.data.example import Example, Message
from merit.data.mixture import Mixture
from merit.data.reading import draw
from merit.data.store import EncodedDataset
from merit.run.layout import RunDir


def qa(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": f"what is {i}?", "answer": f"it is {i}"} for i in range(start, start + n)]


def write(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(datasets: dict, *, unseen: dict | None = None, max_length: int = 256, fraction: float = 0.2) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": "x",
            "mixture": datasets,
            "split": {"splitter": "single"},
            "train": {"max_length": max_length},
            "evaluate": {"unseen": unseen or {}},
            "held_out_fraction": fraction,
        }
    )


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def one(tmp_path, run, rows, *, tokenizer=None, base=None, **settings):
    """Builds a mixture of one dataset; gives its summary and its store."""
    write(tmp_path / "d.jsonl", rows)
    dataset = {"path": "d.jsonl", **settings}
    mixture = build_mixture(config({"d": dataset}, **(base or {})), tmp_path, run, tokenizer or make_tokenizer())
    return mixture.datasets[0], EncodedDataset.open(run.data("d"))


def test_counts_are_those_of_the_rows(tmp_path, run):
    summary, data = one(tmp_path, run, [*qa(60), *qa(10)], weight=0.5)
    assert (summary.train.examples, summary.held_out.examples) == (len(data.train), len(data.held_out))
    assert summary.train.examples + summary.held_out.examples == 60
    assert (summary.duplicates, summary.skipped, summary.dropped, summary.truncated) == (10, 0, 0, 0)
    assert summary.train.tokens == data.lengths[data.train].sum()
    assert summary.held_out.supervised_tokens == data.supervised[data.held_out].sum()
    assert summary.length_quantiles == {
        "0.5": np.sort(data.lengths)[30], "0.9": np.sort(data.lengths)[54], "1.0": data.lengths.max()
    }  # fmt: skip
    assert summary.planned_tokens == round(summary.train.supervised_tokens / 2)
    assert (summary.format, summary.scoring, summary.source) == ("qa", "reference", "d.jsonl")
    assert len(summary.rendered) == 3
    assert all(text.endswith("<|im_end|>") for shown in summary.rendered for text, loss in shown.pieces if loss)
    for row in data:
        assert row.held_out == (draw(prompt_key(row)) < 0.2 * 2**64)
        assert row.encoded.supervised == sum(label != -100 for label in row.encoded.labels)
        assert row.reference == row.prompt_text.split("what is ")[1].split("?")[0].join(["it is ", ""])
    assert Mixture.load(run.mixture).datasets[0] == summary


def prompt_key(row) -> str:
    question = row.prompt_text.split("user\n")[1].split("<|im_end|>")[0]
    return Example((Message("user", question),), ()).prompt_key


def parts(data) -> tuple[set[str], set[str]]:
    """The questions to train on, and those held out."""
    asked = [
        data[row].prompt_text.lower().split("user\n")[1].split("<|im_end|>")[0].split() for row in range(len(data))
    ]
    train, held_out = ({" ".join(asked[row]) for row in rows} for rows in (data.train, data.held_out))
    return train, held_out


def test_a_prompt_is_held_out_with_all_its_answers(tmp_path, run):
    rows = [{"question": f"What  is {i}?", "answer": f"it is {i}, {turn}"} for i in range(60) for turn in range(3)]
    rows += [{"question": f" what is\n{i}? ", "answer": "guess"} for i in range(60)]
    train, held_out = parts(one(tmp_path, run, rows)[1])
    assert not train & held_out
    assert len(train | held_out) == 60
    assert len(held_out) in range(5, 20)


def test_datasets_hold_out_the_same_prompts(tmp_path, run):
    write(tmp_path / "a.jsonl", qa(60))
    write(tmp_path / "b.jsonl", [{"prompt": f"WHAT is {i}?", "completion": "no idea"} for i in range(60)])
    settings = config({"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl", "system": "be brief"}})
    build_mixture(settings, tmp_path, run, make_tokenizer())
    found = [EncodedDataset.open(run.data(name)) for name in "ab"]
    held = [{data[int(row)].prompt_text.lower().split("user\n")[1] for row in data.held_out} for data in found]
    assert held[0] == held[1]


@pytest.mark.parametrize(("fraction", "expected"), [(1e-9, 1), (1 - 1e-9, 2)])
def test_each_part_has_a_row_however_small_the_share(tmp_path, run, fraction, expected):
    summary, _ = one(tmp_path, run, qa(3), base={"fraction": fraction})
    assert (summary.train.examples, summary.held_out.examples) == (3 - expected, expected)


def test_rows_of_one_prompt_are_held_out_by_their_answers(tmp_path, run):
    summary, _ = one(tmp_path, run, [{"question": "a poem, please", "answer": f"{i}"} for i in range(50)])
    assert summary.train.examples + summary.held_out.examples == 50
    assert 0 < summary.held_out.examples < 25


def test_adding_and_shuffling_rows_moves_no_other_row(tmp_path, run):
    first, data = one(tmp_path, run, qa(80))
    before = {row.id: row for row in data}
    rows = qa(140)
    random.Random(0).shuffle(rows)
    _, data = one(tmp_path, run, rows)
    after = {row.id: row for row in data}
    assert len(after) == 140
    assert all(after[key] == row for key, row in before.items())
    # The same rows in another order are the same dataset, in everything that later stages look at.
    rows = qa(80)
    random.Random(1).shuffle(rows)
    again, data = one(tmp_path, run, rows)
    assert again == first
    assert [data[row].id for row in data.train] == sorted(key for key, row in before.items() if not row.held_out)


def test_a_cap_takes_the_same_rows_whatever_their_order(tmp_path, run):
    rows = [*qa(100), *qa(20)]
    summary, data = one(tmp_path, run, rows, max_examples=30)
    kept = {row.id for row in data}
    everything = sorted({row.id for row in one(tmp_path, run, rows)[1]})
    assert kept == set(everything[:30])
    assert (summary.duplicates, summary.skipped) == (20, 70)
    # It does not favour one part, nor change where a row belongs.
    assert 0 < summary.held_out.examples < 15
    assert one(tmp_path, run, rows[::-1], max_examples=30)[0] == summary


def test_unseen_datasets_are_held_out_whole(tmp_path, run):
    write(tmp_path / "a.jsonl", qa(40))
    write(tmp_path / "b.jsonl", qa(15, 100))
    built = build_mixture(
        config({"a": {"path": "a.jsonl"}}, unseen={"b": {"path": "b.jsonl"}}), tmp_path, run, make_tokenizer()
    )
    assert [item.name for item in built.datasets] == ["a"]
    assert [item.name for item in built.unseen] == ["b"]
    assert built.unseen[0].held_out.examples == 15
    assert len(EncodedDataset.open(run.data("b")).train) == 0


def test_strange_names_stay_in_the_run_directory(tmp_path, run):
    write(tmp_path / "d.jsonl", qa(40))
    names = ["größe #1", "a: b", "..x", "é" * 200, "CON"]
    built = build_mixture(config({name: {"path": "d.jsonl"} for name in names}), tmp_path, run, make_tokenizer())
    assert built.names == names
    assert len(list((run.root / "data").iterdir())) == len(names)


def test_what_is_unchanged_is_not_read_again(tmp_path, run, monkeypatch):
    write(tmp_path / "a.jsonl", qa(40))
    write(tmp_path / "b.jsonl", qa(40, 50))
    settings = config({"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}})
    first = build_mixture(settings, tmp_path, run, make_tokenizer())
    read = []
    original = build.select
    monkeypatch.setattr(build, "select", lambda reader, *rest: read.append(reader.name) or original(reader, *rest))

    def rebuilt(settings, tokenizer=None):
        read.clear()
        build_mixture(settings, tmp_path, run, tokenizer or make_tokenizer())
        return list(read)

    assert rebuilt(settings) == []
    assert Mixture.load(run.mixture) == first
    # A weight is planning's; a moved file has the same content.
    (tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl")
    moved = config({"a": {"path": "c.jsonl", "weight": 3}, "b": {"path": "b.jsonl"}})
    assert rebuilt(moved) == []
    assert Mixture.load(run.mixture).datasets[0].weight == 3
    assert Mixture.load(run.mixture).datasets[0].source == "c.jsonl"
    write(tmp_path / "b.jsonl", qa(41, 50))
    assert rebuilt(moved) == ["b"]
    assert rebuilt(moved) == []
    run.data("a").write_bytes(run.data("a").read_bytes()[:-20])
    assert rebuilt(moved) == ["a"]
    assert rebuilt(moved, make_tokenizer(ENDLESS)) == ["a", "b"]
    assert rebuilt(moved) == ["a", "b"]
    assert rebuilt(config(moved.model_dump()["mixture"], max_length=255)) == ["a", "b"]
    assert rebuilt(config(moved.model_dump()["mixture"], max_length=255, fraction=0.3)) == ["a", "b"]


def test_source_fingerprints_follow_the_content(tmp_path):
    write(tmp_path / "a.jsonl", qa(3))
    settings = config({"a": {"path": "a.jsonl"}})
    first = source_fingerprints(settings, tmp_path)
    assert first == source_fingerprints(settings, tmp_path)
    write(tmp_path / "a.jsonl", qa(4))
    assert first != source_fingerprints(settings, tmp_path)


LONG = {"question": "why? " * 200, "answer": "so"}


def test_examples_without_a_supervised_token_are_left_out(tmp_path, run):
    summary, data = one(tmp_path, run, [*qa(40), LONG], base={"max_length": 64})
    assert (len(data), summary.dropped, summary.truncated) == (40, 1, 0)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_another_example_stands_in_for_the_only_one_that_is_left_out(tmp_path, run, fraction):
    """It would be the one held out, or the one to train on, but its prompt leaves no room for an answer."""
    order = sorted([*qa(30), LONG], key=lambda row: draw(Example((Message("user", row["question"]),), ()).prompt_key))
    order = order[order.index(LONG) :] if fraction < 0.5 else order[order.index(LONG) :: -1]
    bad = {"question": "", "answer": ""}
    whole = config({"d": {"path": "d.jsonl", "on_bad_row": "skip"}}, max_length=64, fraction=fraction)
    write(tmp_path / "d.jsonl", [bad, *order])
    (summary,) = build_mixture(whole, tmp_path, run, make_tokenizer()).datasets
    data = EncodedDataset.open(run.data("d"))
    alone = data.held_out if fraction < 0.5 else data.train
    assert [order[1]["question"] in data[int(row)].prompt_text for row in alone] == [True]
    assert (len(data), summary.dropped, summary.bad_rows) == (len(order) - 1, 1, 1)
    assert len(run.skipped_rows("d").read_text().splitlines()) == 1
    report = check_mixture(whole, tmp_path, make_tokenizer())
    assert report.ok
    assert report.datasets[0].summary == summary


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        ([], {}, "d.jsonl: empty: no rows"),
        ([*qa(30), {"question": "q", "answer": ""}], {}, "d.jsonl:31: `answer`: the completion is empty"),
        ([LONG, LONG], {"max_length": 64}, "d.jsonl:1: `train.max_length`: no example keeps a supervised token within "
         "64 tokens; raise it, or shorten the prompts"),
        (qa(1), {"fraction": 0.0001}, "d.jsonl: `held_out_fraction`: none of its 1 examples is left to train "
         "on; add rows, or change the share"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_leaves_nothing(tmp_path, run, rows, settings, line):
    write(tmp_path / "good.jsonl", qa(40))
    write(tmp_path / "d.jsonl", rows)
    good, bad = {"good": {"path": "good.jsonl"}}, {"d": {"path": "d.jsonl"}}
    both = config(bad, unseen=good, **settings) if "fraction" in settings else config({**good, **bad}, **settings)
    with pytest.raises(InputError) as caught:
        build_mixture(both, tmp_path, run, make_tokenizer())
    assert str(caught.value) == line
    assert not run.mixture.exists()
    assert not (run.root / "data").exists()


def test_a_template_error_names_the_line(tmp_path, run):
    template = "{% for m in messages %}{% if '7' in m['content'] %}{{ raise_exception('no\n7') }}{% endif %}"
    template += "{{ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(InputError) as caught:
        one(tmp_path, run, qa(40), tokenizer=make_tokenizer(template))
    assert str(caught.value) == "d.jsonl:8: the chat template refuses this conversation: no\\n7"


def test_a_source_that_changes_between_the_readings_is_noticed(tmp_path, run, monkeypatch):
    original = build.select

    for changed in (qa(39), qa(41), qa(40, 1)):

        def select_then_change(reader, *rest, changed=changed):
            selection = original(reader, *rest)
            write(tmp_path / "d.jsonl", changed)
            return selection

        monkeypatch.setattr(build, "select", select_then_change)
        with pytest.raises(InputError, match=r"^d\.jsonl: the source changed while it was read"):
            one(tmp_path, run, qa(40))


def test_memory_does_not_grow_with_the_file(tmp_path, run):
    """Ten times the rows, capped to as many examples: some bytes a row are kept, not the rows."""
    peaks = []
    for count in (1_000, 10_000):
        write(tmp_path / "d.jsonl", ({"question": f"q {i}", "answer": "a" * 1000} for i in range(count)))
        settings = config({"d": {"path": "d.jsonl", "max_examples": 100}})
        tokenizer = make_tokenizer()
        tracemalloc.start()
        build_mixture(settings, tmp_path, run, tokenizer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10_000 * 60 < (tmp_path / "d.jsonl").stat().st_size / 10


def test_reasoning_gym_rows_carry_what_their_scorer_needs(tmp_path, run):
    import reasoning_gym

    datasets = {
        "gcd": {"path": "reasoning_gym:gcd", "max_examples": 60},
        # Some of its entries come without an answer: only its scorer knows one.
        "logic": {"path": "reasoning_gym:propositional_logic", "max_examples": 10},
    }
    settings = config({"gcd": datasets["gcd"]})
    summary = build_mixture(settings, tmp_path, run, make_tokenizer()).datasets[0]
    assert summary.scoring == "verifier"
    row = next(iter(EncodedDataset.open(run.data("gcd"))))
    assert row.verifier is not None
    stored = json.loads(row.verifier)
    assert reasoning_gym.get_score_answer_fn(stored["name"])(row.reference, stored["entry"]) == 1.0
    with pytest.raises(
        InputError, match=r"^reasoning_gym:propositional_logic: `mixture.logic`: its generator gives no"
    ):
        build_mixture(config({"logic": datasets["logic"]}), tmp_path, RunDir(tmp_path / "other"), make_tokenizer())


def test_a_run_directory_that_cannot_be_written(tmp_path, run, monkeypatch):
    run.root.write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"cannot write here"):
        one(tmp_path, run, qa(40))
    run.root.unlink()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_seal", full)
    with pytest.raises(StageError, match="the disk is full"):
        one(tmp_path, run, qa(40))
    assert not list(run.root.rglob("*.arrow*"))


BAD = [{"question": "q", "answer": ""}, {"question": "q", "answer": 3}, ["x"]]


def test_bad_rows_are_skipped_counted_and_named(tmp_path, run):
    rows = [BAD[0], *qa(60), *BAD[1:]]
    with pytest.raises(InputError, match=r"^d.jsonl:1: `answer`: the completion is empty$"):
        one(tmp_path, run, rows)
    assert not run.data_folder.exists()
    summary, data = one(tmp_path, run, rows, on_bad_row="skip")
    assert (summary.bad_rows, len(data)) == (3, 60)
    told = [json.loads(line) for line in run.skipped_rows("d").read_text().splitlines()]
    assert told == [
        {"line": 1, "field": "answer", "problem": "the completion is empty"},
        {"line": 62, "field": "answer", "problem": "must be text, not a number (3)"},
        {"line": 63, "field": None, "problem": "a row must be an object, not list"},
    ]
    assert sorted(file.name for file in run.data_folder.iterdir()) == ["d.arrow", "d.skipped.jsonl"]
    # Without bad rows the result is the same, and the list is empty.
    again, clean = one(tmp_path, run, qa(60), on_bad_row="skip")
    assert (again.fingerprint, again.bad_rows, len(clean)) == (summary.fingerprint, 0, 60)
    assert run.skipped_rows("d").read_text() == ""


def test_bad_rows_of_parts_are_named_by_their_file(tmp_path, run):
    for part in range(2):
        write(tmp_path / f"d-{part}.jsonl", [*qa(30, 30 * part), {"question": "q", "answer": ""}])
    settings = config({"d": {"path": "d-*.jsonl"}})
    with pytest.raises(InputError) as caught:
        build_mixture(settings, tmp_path, run, make_tokenizer())
    assert str(caught.value) == "d-0.jsonl:31: `answer`: the completion is empty"
    settings = config({"d": {"path": "d-*.jsonl", "on_bad_row": "skip"}})
    summary = build_mixture(settings, tmp_path, run, make_tokenizer()).datasets[0]
    assert summary.train.examples + summary.held_out.examples == 60
    told = [json.loads(line) for line in run.skipped_rows("d").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in told] == [("d-0.jsonl", 31), ("d-1.jsonl", 31)]
    absolute = resolve_paths(settings, tmp_path)
    assert absolute.mixture["d"].path == str(tmp_path / "d-*.jsonl")


def test_rows_that_the_template_refuses_are_skipped_too(tmp_path, run):
    template = "{% for m in messages %}{% if '7' in m['content'] %}{{ raise_exception('no 7') }}{% endif %}"
    template += "{{ m['content'] + eos_token }}{% endfor %}"
    tokenizer = make_tokenizer(template)
    summary, data = one(tmp_path, run, qa(40), tokenizer=tokenizer, on_bad_row="skip")
    assert (summary.bad_rows, len(data)) == (4, 36)
    assert [json.loads(line)["line"] for line in run.skipped_rows("d").read_text().splitlines()] == [8, 18, 28, 38]


def test_what_skipping_does_not_cover(tmp_path, run):
    with pytest.raises(InputError, match=r"^d.jsonl: `mixture.d`: not one usable row: 3 are bad; `on_bad_row: refuse`"):
        one(tmp_path, run, BAD[:2] + BAD[:1], on_bad_row="skip")
    # After a syntax error the rest of a JSON file cannot be read: it would be skipped unseen.
    (tmp_path / "d.json").write_text(json.dumps(qa(40))[:-1] + ',\n{"question" }]')
    settings = config({"d": {"path": "d.json", "on_bad_row": "skip"}})
    with pytest.raises(InputError, match=r"^d.json:2: not valid JSON"):
        build_mixture(settings, tmp_path, run, make_tokenizer())


def test_the_setting_is_no_part_of_the_fingerprint_of_those_who_do_not_use_it(tmp_path):
    plain = config({"d": {"path": "d.jsonl"}}).mixture["d"]
    assert "on_bad_row" not in plain.mark
    assert plain.mark == plain.model_dump(mode="json", exclude={"on_bad_row", "where"})
    skipping = config({"d": {"path": "d.jsonl", "on_bad_row": "skip"}}).mixture["d"]
    assert skipping.mark["on_bad_row"] == "skip"
    prepare = PrepareConfig(mixture={"d": plain})
    assert prepare.mark["mixture"] == {"d": plain.mark}
