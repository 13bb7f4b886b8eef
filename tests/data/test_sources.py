"""Sources: every kind streams the same rows, and names file and line of what cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data import json_stream
from merit.data.gym import settled_entries
from merit.data.source import open_source

ROWS = [{"question": f"what is {i}, “{i}”?\nTell.", "answer": f'it is "{i}"'} for i in range(30)]


def source(tmp_path: Path, name: str, **config):
    return open_source(DatasetConfig(path=name, **config), tmp_path, "mixture.d")


def write(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)


def only_error(rows) -> InputError:
    return next(row.error for row in rows if row.error is not None)


def test_all_kinds_of_file_give_the_same_rows(tmp_path):
    def field(text):
        return '"' + text.replace('"', '""') + '"'

    csv = "\ufeffquestion,answer\n" + "".join(f"{field(r['question'])},{field(r['answer'])}\n" for r in ROWS)
    write(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row) for row in ROWS))
    write(tmp_path, "a.JSON", json.dumps(ROWS, indent=2))
    write(tmp_path, "lines.json", "\n".join(json.dumps(row) for row in ROWS))
    write(tmp_path, "a.csv", csv)
    write(tmp_path, "a.tsv", "question\tanswer\n" + "".join(
        f"{field(r['question'])}\t{field(r['answer'])}\n" for r in ROWS))  # fmt: skip
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.JSON", "lines.json", "a.csv", "a.tsv", "a.parquet"):
        rows = list(source(tmp_path, name).rows())
        assert [row.value for row in rows] == ROWS, name
        assert all(row.error is None for row in rows)
        assert 0 < rows[0].done <= rows[-1].done <= 1
        assert rows[-1].done > 0.99


@pytest.mark.parametrize("pack", [gzip.compress, lambda text: pa.Codec("zstd").compress(text, asbytes=True)])
def test_packed_text_gives_the_same_rows(tmp_path, pack):
    packing = ".gz" if pack is gzip.compress else ".zst"
    lines = "\n".join(json.dumps(row) for row in ROWS)
    texts = {
        "a.jsonl": lines,
        "b.jsonl": json.dumps(ROWS, indent=1),
        "a.json": json.dumps({"data": ROWS}),
        "a.csv": "question;answer\n" + "".join(f'"{r["question"]}";{i}\n' for i, r in enumerate(ROWS)),
    }
    for name, text in texts.items():
        for content in (text.encode(), text.encode("utf-16")):
            write(tmp_path, name, content)
            write(tmp_path, name + packing, pack(content))
            found = list(source(tmp_path, name + packing).rows())
            assert [(row.number, row.value, row.error) for row in found] == [
                (row.number, row.value, row.error) for row in source(tmp_path, name).rows()
            ]
            assert len(found) == len(ROWS)
            assert found[-1].done > 0.99
    # Two packed files one after another are one packed file, as `cat` makes it.
    write(tmp_path, "a.jsonl" + packing, pack(lines.encode() + b"\n") * 2)
    assert [row.value for row in source(tmp_path, "a.jsonl" + packing).rows()] == ROWS * 2
    packed = pack(lines.encode())
    for damaged in (packed[:-9], packed[:2], packed[: len(packed) // 2], lines.encode()):
        write(tmp_path, "a.jsonl" + packing, damaged)
        with pytest.raises(InputError, match=rf"^a\.jsonl\{packing}: (damaged|cannot be read): .") as caught:
            list(source(tmp_path, "a.jsonl" + packing).rows())
        assert "\n" not in str(caught.value)


def test_memory_stays_small_whatever_is_packed(tmp_path):
    row = json.dumps({"question": "q" * 3000, "answer": "a" * 100})
    write(tmp_path, "a.jsonl.gz", gzip.compress("\n".join([row] * 10_000).encode()))
    write(tmp_path, "a.json.gz", gzip.compress(f"[{','.join([row] * 10_000)}]".encode()))
    for name in ("a.jsonl.gz", "a.json.gz"):
        tracemalloc.start()
        assert sum(row.error is None for row in source(tmp_path, name).rows()) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 4e6
        tracemalloc.stop()


def test_arrow_files_give_the_same_rows(tmp_path):
    from datasets import Dataset

    rows = [{"messages": [{"role": "user", "content": r["question"]}], "tools": None, **r} for r in ROWS]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    pa.feather.write_feather(pa.Table.from_pylist(rows), tmp_path / "a.arrow", "uncompressed", chunksize=7)
    for name in ("saved/data-00000-of-00001.arrow", "a.arrow"):
        found = list(source(tmp_path, name).rows())
        assert [(row.number, row.value) for row in found] == list(enumerate(rows, start=1))
        assert 0 < found[0].done <= found[-1].done <= 1
        content = (tmp_path / name).read_bytes()
        for damaged in (b"", b"ARROW1", content[: len(content) // 2], b"x" * 100):
            write(tmp_path, "damaged.arrow", damaged)
            with pytest.raises(
                InputError, match=r"^damaged\.arrow: (not a readable Arrow file|cannot be read): ."
            ) as caught:
                list(source(tmp_path, "damaged.arrow").rows())
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "columns", [{"q": ["a" * 10_000] * 10}, {"q": pa.array(["a" * 10_000] * 9).dictionary_encode()}]
)
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_is_refused_before_it_expands(tmp_path, columns, codec):
    table = pa.table(columns)
    for packed in (None, codec):
        options = pa.ipc.IpcWriteOptions(compression=packed)
        with (
            pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema, options=options) as w,
        ):
            w.write_table(table)
        if packed is None:
            assert [row.value for row in source(tmp_path, "a.arrow").rows()] == table.to_pylist()
    with pytest.raises(InputError, match=r"^a\.arrow: compressed; write it without compression, or as Parquet$"):
        list(source(tmp_path, "a.arrow").rows())


def test_arrow_that_points_outside_of_its_values_is_refused(tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, pa.schema([("q", "string")])) as w:
        w.write_batch(pa.record_batch([["abc", "def"]], ["q"]))
    content = (tmp_path / "a.arrow").read_bytes()
    offsets = np.array([0, 3, 6], np.int32).tobytes()
    assert content.count(offsets) == 1
    write(tmp_path, "a.arrow", content.replace(offsets, np.array([0, 2**30, 6], np.int32).tobytes()))
    with pytest.raises(InputError, match=r"^a\.arrow: not a readable Arrow file"):
        list(source(tmp_path, "a.arrow").rows())


def test_parts_are_one_source(tmp_path):
    (tmp_path / "in").mkdir()
    for number, rows in enumerate((ROWS[:20], ROWS[20:], [])):
        write(tmp_path, f"in/train-{number}.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path, "in/[train]-0.jsonl", "{}")
    parts = source(tmp_path, "in/train-*.jsonl")
    found = list(parts.rows())
    assert [row.value for row in found] == ROWS
    assert [(row.place, row.number) for row in (found[0], found[20])] == [
        ("in/train-0.jsonl", 1), ("in/train-1.jsonl", 1)
    ]  # fmt: skip
    assert [row.done for row in found] == sorted(row.done for row in found)
    before = parts.fingerprint()
    write(tmp_path, "in/train-2.jsonl", "{")
    assert parts.fingerprint() != before
    assert str(only_error(parts.rows())).startswith("in/train-2.jsonl:1: not valid JSON")
    assert [part.place for part in source(tmp_path, "in/[train]-*.jsonl").parts] == ["in/[train]-0.jsonl"]
    with pytest.raises(InputError, match=r"in/none-\*\.jsonl: `mixture\.d\.path`: no such file"):
        source(tmp_path, "in/none-*.jsonl")


def test_objects_of_several_lines(tmp_path):
    write(tmp_path, "a.jsonl", "\n".join(json.dumps(row, indent=2) for row in PAIRS))
    assert [row.value for row in source(tmp_path, "a.jsonl").rows()] == PAIRS
    assert [row.number for row in source(tmp_path, "a.jsonl").rows()] == [1, 5, 9]


@pytest.mark.parametrize("broken", ['{"data": [{"x": 1}', '{"prompt": "q"', "{", "x", '{"data": [{"x": 1}]}}'])
def test_a_broken_first_line_is_one_bad_line(tmp_path, broken):
    write(tmp_path, "a.jsonl", "\n".join([broken, *map(json.dumps, PAIRS)]))
    first, *others = source(tmp_path, "a.jsonl").rows()
    assert str(first.error).startswith("a.jsonl:1: not valid JSON")
    assert [row.value for row in others] == PAIRS


def test_lines_are_those_of_the_file(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [row.number for row in source(tmp_path, "a.jsonl").rows()] == [1, 3]
    write(tmp_path, "a.json", '[\n {"a": 1},\n\n {\n"a": 2}, {"a": 3}]')
    assert [row.number for row in source(tmp_path, "a.json").rows()] == [2, 4, 5]
    write(tmp_path, "a.csv", 'a,b\n"1\n1",x\n2,y\n')
    assert [row.number for row in source(tmp_path, "a.csv").rows()] == [2, 4]


def test_a_bad_line_does_not_hide_the_next(tmp_path):
    write(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": \n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    rows = list(source(tmp_path, "a.jsonl").rows())
    assert [row.error is None for row in rows] == [True, False, False, False, True]
    assert str(rows[1].error).startswith("a.jsonl:2: not valid JSON")
    assert str(rows[2].error) == "a.jsonl:3: not valid UTF-8"
    assert str(rows[3].error).startswith("a.jsonl:4: not valid JSON")


def test_line_80001_is_named_and_memory_stays_small(tmp_path):
    line = json.dumps({"question": "q" * 300, "answer": "a" * 100}) + "\n"
    write(tmp_path, "a.jsonl", line * 80_000 + '{"question": "q", "answer"\n' + line)
    # The same as one array: the element that starts in line 80,001 is broken.
    write(tmp_path, "a.json", "[" + line.strip() + ",\n" + (line.strip() + ",\n") * 79_999 + '{"question" "q"}]')
    for name in ("a.jsonl", "a.json"):
        tracemalloc.start()
        error = only_error(source(tmp_path, name).rows())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert str(error).startswith(f"{name}:80001: not valid JSON")
        assert peak < 4e6 < (tmp_path / name).stat().st_size / 8


VALUES = st.text(max_size=60) | st.integers() | st.lists(st.floats(allow_nan=False))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), VALUES), max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    chunk=st.integers(1, 40),
)
def test_json_in_any_pieces_is_what_the_standard_parser_says(rows, indent, chunk):
    import io

    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()
    original, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        read = list(json_stream.stream_json(io.BufferedReader(io.BytesIO(text.encode()))))
    finally:
        json_stream._CHUNK = original
    assert [value for _, value in read] == json.loads(text)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('[{"a": 1}\n{"a": 2}]', 2, "expected `,`"),
        ('[{"a": 1},\n', 2, "Expecting value"),
        ('[{"a": 1}\n', 2, "no end"),
        ('[{"a": 1}]\n\nx', 3, "follows"),
        ('[\n{"a": "\n"}]', 2, "control character"),
        (b'[{"a": 1},\n{"a": "\xff"}]', 2, "UTF-8"),
        ("[" * 100_000, 1, "recursion|nested"),
    ],
)
def test_broken_json_is_the_last_row_with_its_line(tmp_path, content, line, words):
    write(tmp_path, "a.json", content)
    *_, last = source(tmp_path, "a.json").rows()
    assert last.error is not None
    assert last.error.line == line
    with pytest.raises(InputError, match=words):
        raise last.error


def test_csv_says_which_row_has_too_many_fields(tmp_path):
    write(tmp_path, "a.csv", 'a,b\n1,2\n"3\n3",4,5\n6,7\n')
    rows = list(source(tmp_path, "a.csv").rows())
    assert str(rows[1].error) == "a.csv:3: 3 fields, but the header has 2"
    assert rows[2].value == {"a": "6", "b": "7"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,a\n1,2,3\n", r"a.csv:1: the header names the column 'a' twice"),
        ('a,b\n1,"2\n', r"a.csv:2: not valid CSV"),
        (b"a,b\n1,\xff\n", r"a.csv:2: not valid UTF-8"),
    ],
)
def test_csv_that_cannot_be_read_on(tmp_path, content, words):
    write(tmp_path, "a.csv", content)
    with pytest.raises(InputError, match=words):
        list(source(tmp_path, "a.csv").rows())


def test_long_csv_fields_are_fine(tmp_path):
    write(tmp_path, "a.csv", f"a,b\n{'x' * 500_000},y\n")
    assert len(next(source(tmp_path, "a.csv").rows()).value["a"]) == 500_000


def test_a_damaged_parquet_file_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], content[:100]):
        write(tmp_path, "a.parquet", damaged)
        with pytest.raises(InputError, match=r"^a\.parquet: not a readable Parquet file") as caught:
            list(source(tmp_path, "a.parquet").rows())
        assert "\n" not in str(caught.value)


def test_what_cannot_be_opened(tmp_path):
    write(tmp_path, "train.jsonl", "{}")
    write(tmp_path, "notes.txt", "hello")
    (tmp_path / "folder").mkdir()
    for path, words in {
        "trian.jsonl": "no such file; did you mean `train.jsonl`?",
        "notes.txt": "unknown kind of file; use one of .jsonl",
        "folder": "this is a folder",
        "folder/train": "no such file",
        "../x/y/z": "no such file",
        "/no/where.csv": "no such file",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            source(tmp_path, path)
        assert str(caught.value).startswith(f"{path}: `mixture.d.path`: ")
    with pytest.raises(InputError, match=r"`mixture\.d\.options`"):
        source(tmp_path, "train.jsonl", options={"seed": 1})


def test_the_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path, "a.jsonl", "{}")
    write(tmp_path, "b.jsonl", "{}")
    write(tmp_path, "c.jsonl", "{} ")
    a, b, c = (source(tmp_path, name).fingerprint() for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c


def test_the_hub_offline_says_so_in_one_line(tmp_path, monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/name'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"^org/name: the Hub cannot be reached"):
        list(source(tmp_path, "org/name").rows())
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ValueError("bad\nsplit")))
    with pytest.raises(InputError, match=r"^org/name: cannot be loaded: bad split$"):
        list(source(tmp_path, "org/name", split="nope").rows())


def test_a_hub_dataset_is_loaded_once(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load(path, name, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = source(tmp_path, "org/name", subset="main", split="test")
    assert calls == []
    assert [row.value for row in hub.rows()] == ROWS
    assert hub.fingerprint() == hub.fingerprint()
    assert calls == [("org/name", "main", "test")]


def test_a_reasoning_gym_family(tmp_path):
    gym = source(tmp_path, "reasoning_gym:gcd", max_examples=7, options={"seed": 3, "max_value": 50})
    rows = [row.value for row in gym.rows()]
    assert len(rows) == 7
    assert rows == [row.value for row in gym.rows()]
    assert rows != [row.value for row in source(tmp_path, "reasoning_gym:gcd", max_examples=7).rows()]
    assert gym.scores
    stored = json.loads(rows[0]["verifier"])
    assert stored["name"] == "gcd"
    assert stored["entry"]["answer"] == rows[0]["answer"]


def test_reasoning_gym_families_are_the_same_in_every_process(tmp_path):
    """The first draws from a set of strings, the second from the global generator."""
    paths = ["reasoning_gym:isomorphic_strings", "reasoning_gym:list_functions"]
    code = (
        "import json, pathlib; from merit.config.sections import DatasetConfig; "
        "from merit.data.source import open_source; "
        f"found = [open_source(DatasetConfig(path=path, max_examples=6), pathlib.Path(), 'd') for path in {paths}]; "
        "print(json.dumps([[row.value for row in item.rows()] for item in found]))"
    )
    other = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=other, capture_output=True, text=True, check=True)
    for path, there in zip(paths, json.loads(done.stdout), strict=True):
        assert there == [row.value for row in source(tmp_path, path, max_examples=6).rows()]
        assert len({row["question"] for row in there}) == 6


def test_a_generator_that_fails_in_its_own_process_says_why(tmp_path):
    with pytest.raises(
        InputError, match=r"^reasoning_gym:isomorphic_strings: the generator failed: .*min_string_length"
    ):
        settled_entries("isomorphic_strings", 2, 0, {"min_string_length": 9, "max_string_length": 3})


@pytest.mark.parametrize(
    ("path", "config", "words"),
    [
        ("reasoning_gym:gcdd", {}, r"`mixture\.d\.path`: unknown family 'gcdd'; did you mean `gcd`\?"),
        ("reasoning_gym:gcd", {"options": {"max_valu": 1}}, r"`mixture\.d\.options\.max_valu`: .*`max_value`"),
        ("reasoning_gym:gcd", {"options": {"seed": "x"}}, r"options\.seed`: must be a whole number"),
        ("reasoning_gym:gcd", {"options": {"size": 3}}, r"options\.size`: set `max_examples`"),
        ("reasoning_gym:gcd", {"options": {"min_numbers": -4}}, r"`mixture\.d\.options`: the generator refuses"),
        ("reasoning_gym:gcd", {"options": {"min_numbers": "x"}}, r"`mixture\.d\.options`: the generator refuses"),
        ("reasoning_gym:composite", {}, r"`mixture\.d\.options`: the generator refuses"),
    ],
)
def test_what_reasoning_gym_refuses(tmp_path, path, config, words):
    with pytest.raises(InputError, match=words):
        source(tmp_path, path, **config)


SPEECH = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PAIRS = [{"prompt": "q", "completion": str(number)} for number in range(3)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"version": "1", "data": PAIRS})),
        ("a.json", json.dumps({"version": 1, "examples": PAIRS, "note": {"by": "x"}}, indent=1)),
        ("a.json", json.dumps({"info": {"by": "x"}, "rows": PAIRS})),
        ("a.json", json.dumps({"train": PAIRS}).encode("utf-16")),
        ("a.json", json.dumps({"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": p} for p in PAIRS]})),
        ("a.jsonl", json.dumps({"version": "1", "data": PAIRS})),
        ("a.jsonl", json.dumps(PAIRS)),
        ("a.jsonl", json.dumps(PAIRS, indent=2)),
        ("a.jsonl", "\n".join(map(json.dumps, PAIRS)).encode("utf-16")),
        ("a.csv", "prompt;completion\nq;0\nq;1\nq;2\n"),
        ("a.csv", "prompt\tcompletion\r\nq\t0\r\nq\t1\r\nq\t2\r\n"),
        ("a.tsv", "prompt,completion\nq,0\nq,1\nq,2\n"),
        ("a.csv", "prompt, completion\nq, 0\nq, 1\nq, 2\n"),
        ("a.csv", "prompt,completion\nq,0\nq,1\nq,2\n".encode("utf-16")),
        ("a.csv", "\ufeffprompt;completion\r\nq;0\r\nq;1\r\nq;2\r\n".encode("utf-16-be")),
    ],
)
def test_dialects_give_the_same_rows(tmp_path, name, content):
    write(tmp_path, name, content)
    rows = list(source(tmp_path, name).rows())
    assert [row.error for row in rows] == [None] * 3
    assert [row.value for row in rows] == PAIRS


def test_a_bare_list_of_turns_is_a_conversation(tmp_path):
    write(tmp_path, "a.jsonl", "\n".join([json.dumps(SPEECH)] * 2))
    write(tmp_path, "b.json", json.dumps([SPEECH, SPEECH]))
    write(tmp_path, "c.jsonl", json.dumps([SPEECH, SPEECH], indent=1))
    for name in ("a.jsonl", "b.json", "c.jsonl"):
        assert [row.value for row in source(tmp_path, name).rows()] == [{"messages": SPEECH}] * 2


def test_lines_of_wrapped_rows_are_those_of_the_file(tmp_path):
    write(tmp_path, "a.json", '{"version": 1,\n"data": [\n{"a": 1},\n{"a": 2}\n],\n"more": 3}\n')
    assert [(row.number, row.value) for row in source(tmp_path, "a.json").rows()] == [(3, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "q", "data": [{"x": 1}]}],
        [{"messages": SPEECH, "data": [{"x": 1}]}, {"messages": SPEECH}],
        [{"id": 1, "data": SPEECH}],
        [{"id": 1, "data": ["q", "a"]}, {"id": 2, "data": ["q", "a"]}],
    ],
)
def test_a_row_with_a_list_is_no_wrapper(tmp_path, rows):
    write(tmp_path, "a.json", "\n".join(map(json.dumps, rows)))
    assert [row.value for row in source(tmp_path, "a.json").rows()] == rows


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('{"train": [{"a": 1}],\n"test": [{"a": 2}]}', 2, "rows under both `train` and `test`"),
        ('{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}', 2, "something follows the object"),
        ('{"data": [{"a": 1}]', 1, "the object has no end"),
        ('{"data": [{"a": 1}],\n"b" 3}', 2, "expected `:`"),
    ],
)
def test_a_wrapper_that_cannot_be_read_on(tmp_path, content, line, words):
    write(tmp_path, "a.json", content)
    *_, last = source(tmp_path, "a.json").rows()
    assert last.error is not None
    assert (last.error.line, words in last.error.message) == (line, True), last.error


def test_lines_with_a_list_are_no_wrapper(tmp_path):
    rows = [{"id": 1, "data": [{"x": 1}], "prompt": "q", "completion": "a"}] * 2
    write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert [row.value for row in source(tmp_path, "a.jsonl").rows()] == rows


@pytest.mark.parametrize("depth", [0, 1])
def test_a_key_that_stands_twice_is_a_bad_row(tmp_path, depth):
    """Python, as most parsers, takes the last value, and drops the first without a word."""
    twice = '{"prompt": "lost", "prompt": "q", "completion": "a"}'
    rows = [json.dumps(PAIRS[0]), twice if depth == 0 else f'{{"messages": [{twice}]}}', json.dumps(PAIRS[1])]
    write(tmp_path, "a.jsonl", "\n".join(rows))
    write(tmp_path, "a.json", "[" + ",\n".join(rows) + "]")
    write(tmp_path, "b.json", '{"data": [' + ",\n".join(rows) + "]}")
    write(tmp_path, "b.jsonl", "[" + ",\n".join(rows) + "]")
    write(tmp_path, "c.jsonl", "[" + ",\n".join(["", *rows][2:]) + "]")
    for name in ("a.jsonl", "a.json", "b.json", "b.jsonl", "c.jsonl"):
        found = list(source(tmp_path, name).rows())
        (bad,) = [row for row in found if row.error is not None]
        assert str(bad.error) == f"{name}:{1 if name[0] == 'c' else 2}: an object has the key 'prompt' twice"
        assert [row.value for row in found if row.error is None] == PAIRS[name[0] == "c" : 2]


def test_the_word_of_excel_for_the_delimiter(tmp_path):
    for mark in ";,\t|":
        text = f"sep={mark}\r\nprompt{mark}completion\r\nq{mark}0\r\nq{mark}1\r\nq{mark}2\r\n"
        for name in ("a.csv", "a.tsv"):
            write(tmp_path, name, text)
            assert [row.value for row in source(tmp_path, name).rows()] == PAIRS
            assert [row.number for row in source(tmp_path, name).rows()] == [3, 4, 5]


def test_a_quote_that_joins_rows_is_refused(tmp_path):
    joined = 'a\tb\n0\tx\n"one\tx\ntwo\tx\nthree"\tx\n4\ty\n'
    write(tmp_path, "a.tsv", joined)
    found = list(source(tmp_path, "a.tsv").rows())
    assert [row.value for row in found if row.error is None] == [{"a": "0", "b": "x"}, {"a": "4", "b": "y"}]
    assert str(only_error(found)).startswith("a.tsv:3: a quote joins 3 lines that look like rows")
    # Tabs and line ends within quotes are fine, where the lines do not look like rows.
    code = 'a\tb\n"def f():\n\tif x:\n\t\treturn"\tx\n"1\n2"\t"3\n4"\n'
    write(tmp_path, "a.tsv", code)
    assert [row.value for row in source(tmp_path, "a.tsv").rows()] == [
        {"a": "def f():\n\tif x:\n\t\treturn", "b": "x"}, {"a": "1\n2", "b": "3\n4"}
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    write(tmp_path, name, f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n")
    with pytest.raises(InputError) as caught:
        list(source(tmp_path, name).rows())
    assert str(caught.value) == f"{name}: a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"


def test_latin_1_says_how_to_convert_it(tmp_path):
    write(tmp_path, "a.csv", "prompt,completion\ncafé,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a.csv:2: not valid UTF-8; .*iconv -f WINDOWS-1252 -t UTF-8"):
        list(source(tmp_path, "a.csv").rows())


def test_a_damaged_utf_16_file_is_named(tmp_path):
    write(tmp_path, "a.csv", b"\xff\xfea\x00,\x00b\x00\n\x00\x00\xd8a\x00")
    with pytest.raises(InputError, match=r"a.csv:\d: not valid UTF-16"):
        list(source(tmp_path, "a.csv").rows())
