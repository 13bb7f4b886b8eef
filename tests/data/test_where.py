"""`where`: several datasets in one file."""

from __future__ import annotations

import json

import pytest
from chat_tokenizers import make_tokenizer
from test_build_mixture import qa, write

from merit.base.errors import InputError
from merit.config import RunConfig
from merit.config.sections import DatasetConfig
from merit.data.build import build_mixture
from merit.data.check import check_mixture
from merit.data.reading import DatasetReader
from merit.data.store import EncodedDataset
from merit.run.layout import RunDir


def rows():
    return [{**row, "source": ["math", "code"][n % 2], "level": n % 4} for n, row in enumerate(qa(60))]


def reader(folder, **config):
    return DatasetReader.open("d", DatasetConfig(path="d.jsonl", **config), folder)


def config(datasets):
    return RunConfig.model_validate({"model": "x", "mixture": datasets, "split": {"splitter": "single"}})


def test_two_datasets_of_one_file_share_no_row(tmp_path):
    write(tmp_path / "d.jsonl", rows())
    settings = config({name: {"path": "d.jsonl", "where": {"source": name}} for name in ("math", "code")})
    mixture = build_mixture(settings, tmp_path, RunDir(tmp_path / "run"), make_tokenizer())
    assert [item.train.examples + item.held_out.examples for item in mixture.datasets] == [30, 30]
    stores = [EncodedDataset.open(RunDir(tmp_path / "run").data(name)) for name in ("math", "code")]
    prompts = [{store[row].prompt_text for row in range(len(store))} for store in stores]
    assert not prompts[0] & prompts[1]


def test_rows_keep_their_lines_and_numbers_may_be_text(tmp_path):
    write(tmp_path / "d.jsonl", rows())
    assert [row.number for row in reader(tmp_path, where={"source": "code", "level": "3"}).read()] == [*range(4, 61, 4)]
    (tmp_path / "d.csv").write_text("question,answer,n\n" + "".join(f"q{n},a,{n % 2}\n" for n in range(6)))
    found = DatasetReader.open("d", DatasetConfig(path="d.csv", where={"n": 1}), tmp_path)
    assert [row.number for row in found.read()] == [3, 5, 7]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            {"source": "maths"},
            r"^d\.jsonl: `mixture\.d\.where\.source`: no row has `source: maths`; did you mean `math`\?",
        ),
        ({"source": "poem"}, "no row has `source: poem`; there are math, code$"),
        ({"sourcs": "math"}, r"`mixture\.d\.where`: no row has a column 'sourcs'; did you mean `source`\?"),
        ({"source": "math", "level": 3}, "no row has all of these values"),
    ],
)
def test_no_row_is_refused(tmp_path, where, told):
    write(tmp_path / "d.jsonl", rows())
    with pytest.raises(InputError, match=told):
        list(reader(tmp_path, where=where).read())


def test_an_empty_file_is_empty_whatever_is_asked_for(tmp_path):
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(InputError, match=r"^d\.jsonl: empty: no rows$"):
        list(reader(tmp_path, where={"source": "math"}).read())


def test_a_broken_line_may_be_of_this_dataset(tmp_path):
    write(tmp_path / "d.jsonl", rows())
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write('{"question": \n')
    errors = [row.error for row in reader(tmp_path, where={"source": "math"}).read() if row.error is not None]
    assert [error.line for error in errors] == [61]


def test_the_column_is_read_and_its_format_is_that_of_its_rows(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    mixed = [{"messages": chat, "kind": "chat", "id": 1}] + [{**row, "kind": "qa"} for row in qa(40)]
    write(tmp_path / "d.jsonl", mixed)
    report = check_mixture(config({"d": {"path": "d.jsonl", "where": {"kind": "qa"}}}), tmp_path, make_tokenizer())
    assert report.ok
    assert report.datasets[0].summary.format == "qa"
    assert not any("not read" in line for line in report.datasets[0].warnings)


def test_fingerprints_know_it_only_where_it_is_set():
    assert "where" not in DatasetConfig(path="a.jsonl").mark
    assert DatasetConfig(path="a.jsonl", where={"a": 1}).mark["where"] == {"a": 1}
    assert json.dumps(DatasetConfig(path="a.jsonl", where={"a": True}).mark["where"]) == '{"a": true}'
