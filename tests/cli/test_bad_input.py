"""Bad data and models: `run` and `check` say where in one line, exit with 2, and leave nothing behind."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command, config_text, tree

Edit = Callable[[Path], None]


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def rows(name: str, *bad: object, good: int = 30) -> Edit:
    """A JSONL file of good rows, then `bad` ones (text as it is)."""

    def edit(folder: Path) -> None:
        lines = [json.dumps({"prompt": f"say {i}", "completion": f"{i}"}) for i in range(good)]
        lines += [row if isinstance(row, str) else json.dumps(row) for row in bad]
        (folder / name).write_text("\n".join(lines) + "\n")

    return edit


def broken_at_80001(folder: Path) -> None:
    good = [json.dumps({"prompt": f"say {i}", "completion": f"{i}"}) for i in range(40)] * 2000
    (folder / "x.jsonl").write_text("\n".join([*good, '{"prompt": "a", "completion" "b"}']) + "\n")


def chat(*turns: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}, *turns]}


def write(name: str, content: str | bytes) -> Edit:
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def parquet_numbers(folder: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 30, "completion": list(range(30))}), folder / "x.parquet")


LONG = {"prompt": "word " * 300, "completion": "a"}
ANSWER = {"role": "assistant", "content": "yes"}

# What is done to the folder, the dataset's entry, and the line that must come.
DATA: dict[str, tuple[Edit, str, str]] = {
    "broken JSON at line 80,001": (
        broken_at_80001,
        "{path: x.jsonl}",
        "x.jsonl:80001: not valid JSON: Expecting ':' delimiter",
    ),
    "missing file": (lambda _: None, "{path: chta.jsonl}",
        "chta.jsonl: `mixture.x.path`: no such file; did you mean `chat.jsonl`?"),
    "empty file": (write("x.jsonl", ""), "{path: x.jsonl}", "x.jsonl: empty: no rows"),
    "blank file": (write("x.jsonl", "\n\n \n"), "{path: x.jsonl}", "x.jsonl: empty: no rows"),
    "empty array": (write("x.json", "[]"), "{path: x.json}", "x.json: empty: no rows"),
    "header alone": (write("x.csv", "prompt,completion\n"), "{path: x.csv}", "x.csv: empty: no rows"),
    "a folder": (lambda folder: (folder / "x.jsonl").mkdir(), "{path: x.jsonl}",
        "x.jsonl: `mixture.x.path`: this is a folder; name one file in it"),
    "unknown kind of file": (write("x.txt", "a"), "{path: x.txt}",
        "x.txt: `mixture.x.path`: unknown kind of file; use one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
    "wrong type": (rows("x.jsonl", {"prompt": "a", "completion": 7}), "{path: x.jsonl}",
        "x.jsonl:31: `completion`: must be text, not a number (7)"),
    "wrong type in Parquet": (parquet_numbers, "{path: x.parquet}",
        "x.parquet:1: `completion`: must be text, not a number (0)"),
    "a row that is no object": (rows("x.jsonl", "[1, 2]"), "{path: x.jsonl}",
        "x.jsonl:31: a row must be an object, not list"),
    "not UTF-8": (write("x.jsonl", b'{"prompt": "a", "completion": "\xff"}\n'), "{path: x.jsonl}",
        "x.jsonl:1: not valid UTF-8"),
    "unknown role": (write("x.jsonl", json.dumps(chat(ANSWER, {"role": "asistant", "content": "a"}))),
        "{path: x.jsonl}",
        "x.jsonl:1: `messages[2].role`: unknown role 'asistant'; did you mean `assistant`?"),
    "empty completion": (rows("x.jsonl", {"prompt": "a", "completion": "  "}), "{path: x.jsonl}",
        "x.jsonl:31: `completion`: the completion is empty"),
    "empty turn": (write("x.jsonl", json.dumps(chat({"role": "assistant", "content": ""}))), "{path: x.jsonl}",
        "x.jsonl:1: `messages[1].content`: the completion is empty"),
    "nothing supervised": (rows("x.jsonl", LONG, LONG | {"completion": "b"}, good=0), "{path: x.jsonl}",
        "x.jsonl:1: `train.max_length`: no example keeps a supervised token within 128 tokens; raise it, or shorten "
        "the prompts"),
    "missing column": (rows("x.jsonl"), "{path: x.jsonl, columns: {prompt: qestion}}",
        "x.jsonl: `mixture.x.columns.prompt`: there is no column 'qestion'; it has completion, prompt"),
    "no known format": (write("x.csv", "a,b\n1,2\n"), "{path: x.csv}",
        "x.csv: `mixture.x.format`: no known format fits (a, b); name the columns, e.g. columns: {prompt: question, "
        "completion: answer}"),
    "another format": (rows("x.jsonl"), "{path: x.jsonl, format: alpaca}",
        "x.jsonl:1: `instruction`: missing; the row has prompt, completion"),
    "broken JSON array": (write("x.json", '[{"prompt": "a",\n "completion": }]'), "{path: x.json}",
        "x.json:2: not valid JSON: Expecting value"),
    "ragged CSV": (write("x.csv", "prompt,completion\na,b\nc\n"), "{path: x.csv}",
        "x.csv:3: 1 fields, but the header has 2"),
    "damaged Parquet": (write("x.parquet", b"PAR1 not really PAR1"), "{path: x.parquet}", "x.parquet: not a readable "),
    "terminal escapes": (rows("x.jsonl", {"prompt": "a", "completion": {"\x1b[2J[red]x[/red]": 1}}), "{path: x.jsonl}",
        "x.jsonl:31: `completion`: must be text, not an object"),
    "unknown family": (lambda _: None, '{path: "reasoning_gym:gdc"}',
        "`mixture.x.path`: unknown family 'gdc'; did you mean `gcd`?"),
    "options of a file": (rows("x.jsonl"), "{path: x.jsonl, options: {a: 1}}",
        "`mixture.x.options`: only generators (`reasoning_gym:`, `visual:`) take options"),
    "path too long": (lambda _: None, "{path: " + "y" * 300 + ".jsonl}",
        "y" * 200 + ": `mixture.x.path`: cannot be read: File name too long"),
    "path with a NUL": (lambda _: None, '{path: "a\\0.jsonl"}',
        "a\\x00.jsonl: `mixture.x.path`: cannot be read: embedded null byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_bad_data(case, merit: Command, tiny_model, four_files):
    edit, entry, expected = DATA[case]
    edit(four_files)
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model, {"x": entry}))
    before = tree(four_files)
    ran = merit("run", file)
    assert (ran.code, len(ran.lines)) == (2, 1), ran
    # A path of the configuration is told as the absolute one that it means.
    assert ran.lines[0].removeprefix(f"{four_files}/").startswith(expected)
    assert tree(four_files) == before
    checked = merit("check", file)
    assert checked.code == 2
    assert checked.lines[0] == ran.lines[0]  # and more, where more is wrong
    assert tree(four_files) == before


def test_all_problems_at_once(merit: Command, tiny_model, four_files):
    rows("x.jsonl", {"prompt": "a"}, {"prompt": 3, "completion": "b"})(four_files)
    file = four_files / "merit.yaml"
    settings = config_text(
        tiny_model,
        {"x": "{path: x.jsonl}", "y": "{path: y.jsonl}"},
        "baselines: {mine: {splitter: manual, file: groups.yaml}}",
    )
    file.write_text(settings.replace("max_length: 128", "max_length: 128, trl: {optimm: a}"))
    (four_files / "chat.jsonl").write_text('{"messages": []}\n')
    (four_files / "groups.yaml").write_text("a: [chat, nobody]\nb: [copy, shout, last, x]\n")
    checked = merit("check", file)
    assert checked.code == 2
    assert [line.replace(f"{four_files}/", "") for line in checked.lines] == [
        "`train.trl.optimm`: TRL's SFTConfig has no such argument; did you mean `optim`?",
        "groups.yaml: `a[1]`: `nobody` is no dataset of the mixture",
        "groups.yaml: no group has `y`",
        "chat.jsonl:1: `messages`: no assistant turn, so there is nothing to learn",
        "x.jsonl:31: `completion`: missing; the row has prompt",
        "x.jsonl:32: `prompt`: must be text, not a number (3)",
        "y.jsonl: `mixture.y.path`: no such file; did you mean `x.jsonl`?",
    ]
    report = json.loads(merit("check", file, "--json").out)
    assert len(report["general"]) == 3
    # A run says what is known before any data is read.
    assert merit("run", file).lines == checked.lines[:3]
    assert not (four_files / "runs").exists()


@pytest.fixture
def model_copy(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edited(name: str, **values: object) -> Edit:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | values))

    return edit


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def no_tokenizer(folder: Path) -> None:
    for file in (*folder.glob("token*"), *folder.glob("special*"), *folder.glob("chat*")):
        file.unlink()


def index_of_missing_shards(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


CODE = {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}
MODELS: dict[str, tuple[Edit, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(),
        "{m}: `model.path`: not a model: there is no config.json in it"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{") and None,
        "{m}/config.json:1: not valid JSON: Expecting property name enclosed in double quotes"),
    "config of something else": (lambda folder: (folder / "config.json").write_text("{}") and None,
        "{m}/config.json: `model.path`: not a model configuration: `model_type` is missing"),
    "pickle": (pickled, "{m}: `model.path`: the weights are pickled (pytorch_model.bin), which can run code when "
        "loaded; convert them to safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(),
        "{m}: `model.path`: no .safetensors weights in this folder"),
    "remote code": (edited("config.json", **CODE), "{m}/config.json: `auto_map`: this model runs Python code of its "
        "own; read it, then set `model.trust_remote_code: true`"),
    "truncated weights": (truncated, "{m}/model.safetensors: not a whole safetensors file; download or copy it again"),
    "a shard is missing": (index_of_missing_shards, "{m}/model.safetensors.index.json: `weight_map`: the shard "
        "model-00002-of-00002.safetensors is missing"),
    "no tokenizer": (no_tokenizer, "{m}: no tokenizer in this folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_bad_model(case, merit: Command, model_copy, four_files):
    edit, expected = MODELS[case]
    edit(model_copy)
    file = four_files / "merit.yaml"
    file.write_text(config_text(model_copy))
    before = tree(four_files)
    for command in ("run", "check"):
        outcome = merit(command, file)
        assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
        assert outcome.lines[0].startswith(expected.format(m=model_copy))
        assert tree(four_files) == before


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nowhere/at-all", "`model.path`: 'nowhere/at-all' is no folder here, and the Hub cannot be reached"),
        ("../a b", "`model.path`: '../a b' is neither a folder here nor a Hub id"),
        ("chat.jsonl", "{f}/chat.jsonl: `model.path`: this is a file; a model is a folder, a .gguf file or a Hub id"),
        ("no.gguf", "{f}/no.gguf: `model.path`: no such file"),
        ("fake.gguf", "{f}/fake.gguf: `model.path`: not a GGUF file"),
        ("cut.gguf", "{f}/cut.gguf: cannot be read as GGUF: "),
        ("embedded:gpt5", "`model.path`: no embedded model 'gpt5'; there is: smollm2-135m"),
    ],
)
def test_no_such_model(model, expected, merit: Command, four_files, tmp_path, monkeypatch):
    (four_files / "fake.gguf").write_bytes(b"PK\3\4")
    (four_files / "cut.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(8))
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path / "cache"))
    file = four_files / "merit.yaml"
    file.write_text(config_text(f'"{model}"'))
    before = tree(four_files)
    outcome = merit("run", file)
    assert outcome.code == 2, outcome
    news = [line for line in outcome.lines if not line.startswith("converting ")]
    assert len(news) == 1, outcome
    assert news[0].startswith(expected.format(f=four_files))
    assert tree(four_files) == before


def test_code_of_a_known_architecture_is_not_needed(merit: Command, model_copy, four_files):
    """Many models ship a copy of code that transformers has; it is not run."""
    edited("config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})(model_copy)
    (model_copy / "evil.py").write_text("raise SystemExit(99)")
    file = four_files / "merit.yaml"
    file.write_text(config_text(model_copy))
    assert merit("check", file).code == 0


def test_bad_input_leaves_an_old_run_as_it_was(merit: Command, tiny_model, four_files):
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model))
    assert merit("run", file, "--until", "split").code == 0
    run = four_files / "runs" / "merit"
    before = tree(run)
    events = (run / "events.jsonl").read_text()
    # One file is good and new, the later one bad: the good one's store must not be replaced either.
    rows("chat.jsonl")(four_files)
    rows("zzz.jsonl", LONG, good=0)(four_files)
    file.write_text(config_text(tiny_model, {"zzz": "{path: zzz.jsonl}"}))
    for more in ([], ["--from", "mixture"]):
        failed = merit("run", file, *more)
        assert failed.code == 2
        after = tree(run)
        assert (run / "events.jsonl").read_text().startswith(events)
        assert {**after, "events.jsonl": None} == {**before, "events.jsonl": None}


def test_a_folder_that_was_there_stays_empty(merit: Command, tiny_model, four_files, tmp_path):
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model, {"x": "{path: x.jsonl}"}))
    out = tmp_path / "out"
    out.mkdir()
    assert merit("run", file, "-o", out).code == 2
    assert list(out.iterdir()) == []
    assert merit("run", file, "-o", tmp_path / "a" / "b" / "c").code == 2
    assert not (tmp_path / "a").exists()
