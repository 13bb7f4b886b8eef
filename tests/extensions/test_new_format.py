"""A new data format is one new file."""

from __future__ import annotations

import json

import pytest
from own import OLD, merit, python, write_extension

PAIRS = '''"""A sentence and its translation: {"source", "target"}."""

from merit.data.example import Message
from merit.data.format import Format, answer, text_of


def _read(row, columns, images):
    question = f"Translate: {text_of(row, columns['source'])}"
    return (Message("user", question),), (answer(row, columns["target"]),)


FORMAT = Format(columns={"source": "source", "target": "target"}, read=_read)
'''


@pytest.fixture
def folder(tmp_path):
    write_extension(tmp_path, "formats", "pairs", PAIRS)
    return tmp_path


def write_run(folder, rows, dataset="path: words.jsonl"):
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "merit.yaml"
    file.write_text(f"model: {OLD}/model\nmixture: {{words: {{{dataset}}}}}\nsplit: {{splitter: single}}\n")
    return file


def test_it_is_in_the_schema_and_the_reference(folder):
    schema = json.loads(merit(folder, "schema").stdout)["$defs"]["DatasetConfig"]["properties"]
    assert "pairs" in schema["format"]["anyOf"][0]["enum"]
    assert {"source", "target", "prompt"} <= set(schema["columns"]["propertyNames"]["enum"])
    assert "`sharegpt` or `pairs`" in python(folder, "docs/generate_configuration.py").stdout


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("source", "path: words.jsonl"),
        ("source", "path: words.jsonl, format: pairs"),
        ("english", "path: words.jsonl, columns: {source: english}"),
    ],
)
def test_check_reads_it(source, dataset, folder):
    file = write_run(folder, [{source: f"word {n}", "target": f"mot {n}"} for n in range(40)], dataset)
    done = merit(folder, "check", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["datasets"][0]["summary"]["format"] == "pairs"


def test_a_bad_row_has_its_line(folder):
    rows = [{"source": f"word {n}", "target": f"mot {n}"} for n in range(40)]
    rows[6] = {"source": "word", "targte": "mot"}
    done = merit(folder, "check", write_run(folder, rows))
    assert done.returncode == 2
    expected = "words.jsonl:7: `target`: missing; the row has source, targte; did you mean `targte`?"
    assert expected in done.stdout + done.stderr


def test_a_file_that_states_no_columns(tmp_path):
    text = PAIRS.replace('columns={"source": "source", "target": "target"}', "columns=dict(source='source')")
    file = write_extension(tmp_path, "formats", "pairs", text)
    done = merit(tmp_path, "schema")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{file}: ")
