"""`merit init`: what it proposes loads, and checks."""

from __future__ import annotations

import importlib.util
import json

import pytest
from chat_tokenizers import make_tokenizer
from test_build_mixture import qa, write

from cli.command import Command
from merit.base.errors import InputError
from merit.cli.main import run
from merit.config import load_config
from merit.data import init
from merit.data.check import check_mixture
from merit.data.init import _batch_tokens, propose_config


def load(folder):
    text = propose_config(folder).text
    (folder / "merit.yaml").write_text(text, encoding="utf-8")
    return text, load_config(folder / "merit.yaml")


def test_four_files_in_four_formats(tmp_path):
    write(tmp_path / "one.jsonl", qa(100))
    write(tmp_path / "two.jsonl", [{"instruction": f"{i}", "output": f"{i}"} for i in range(100)])
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    write(tmp_path / "three.jsonl", [{"conversations": said, "id": i} for i in range(3)])
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write(tmp_path / "four.jsonl", [{"messages": chat}])
    (tmp_path / "notes.txt").write_text("not data")
    text, config = load(tmp_path)
    assert list(config.mixture) == ["four", "one", "three", "two"]
    assert [item.path for item in config.mixture.values()] == ["four.jsonl", "one.jsonl", "three.jsonl", "two.jsonl"]
    for name, kind in {"one": "qa", "two": "alpaca", "three": "sharegpt", "four": "messages"}.items():
        assert f"  {name}: {{path: {name}.jsonl}}  # format: {kind}\n" in text
    assert (config.split.splitter, config.split.axes) == ("pca", 1)
    assert config.baselines["joint"].splitter == "single"
    report = check_mixture(config, tmp_path, make_tokenizer())
    assert {item.name for item in report.datasets if not item.problems} >= {"one", "two"}


@pytest.mark.parametrize(("count", "splitter", "axes"), [(1, "single", 2), (2, "pca", 1), (3, "pca", 1), (9, "pca", 2)])
def test_axes_fit_the_number_of_files(tmp_path, count, splitter, axes):
    for i in range(count):
        write(tmp_path / f"d{i}.jsonl", qa(3))
    _, config = load(tmp_path)
    assert (config.split.splitter, config.split.axes) == (splitter, axes)
    assert ("joint" in config.baselines) == (count > 1)


def test_another_merge_stands_beside_the_average(tmp_path, monkeypatch):
    """Where there is one branch, the average is alone."""
    write(tmp_path / "a.jsonl", qa(3))
    monkeypatch.setattr(init, "_BESIDE", "regmean")
    _, alone = load(tmp_path)
    write(tmp_path / "b.jsonl", qa(3))
    _, beside = load(tmp_path)
    assert [[item.rule for item in config.merge.also] for config in (alone, beside)] == [[], ["regmean"]]
    assert {config.merge.weights for config in (alone, beside)} == {"tokens"}


def test_paths_are_relative_to_where_the_configuration_is(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    for name in ("a", "b"):
        write(data / f"{name}.jsonl", qa(3))
    assert run(["init", str(data), "-o", str(elsewhere / "mine.yaml")]) == 0
    config = load_config(elsewhere / "mine.yaml")
    assert [item.path for item in config.mixture.values()] == ["../data/a.jsonl", "../data/b.jsonl"]
    assert all((elsewhere / item.path).is_file() for item in config.mixture.values())


def test_names_that_yaml_would_misread(tmp_path):
    stems = [
        "no",
        "12",
        "1e5",
        "a: b",
        "größe",
        "it's #1",
        "- x",
        "[a]",
        "null",
        "..x",
        "a\tb",
        "{",
        "&a",
        "x" * 120,
        "~",
    ]
    for stem in stems:
        write(tmp_path / f"{stem}.jsonl", qa(3))
    text, config = load(tmp_path)
    # A tab cannot be written; the file is left out, and why is said.
    assert len(config.mixture) == len(stems) - 1
    assert "# left out: " in text
    assert sorted(item.path for item in config.mixture.values()) == sorted(f"{s}.jsonl" for s in stems if s != "a\tb")


def test_one_name_for_each_file(tmp_path):
    write(tmp_path / "a.jsonl", qa(3))
    (tmp_path / "a.json").write_text(json.dumps(qa(3)))
    (tmp_path / "a.csv").write_text("question,answer\nq,a\n")
    _, config = load(tmp_path)
    assert {name: item.path for name, item in config.mixture.items()} == {
        "a": "a.csv", "a-json": "a.json", "a-jsonl": "a.jsonl"
    }  # fmt: skip


def test_files_that_are_not_data_become_comments(tmp_path):
    write(tmp_path / "good.jsonl", qa(3))
    (tmp_path / "config.json").write_text('{"name": "x"}')
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    text, config = load(tmp_path)
    assert list(config.mixture) == ["good"]
    assert "  # config: {path: config.json}  # left out: config.json: `mixture.config.format`: no known format" in text
    assert "  # broken: {path: broken.jsonl}  # left out: broken.jsonl:1: not valid JSON" in text


def test_the_embedded_model_where_its_package_is(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", qa(3))
    for spec, model in ((None, "HuggingFaceTB/SmolLM2-135M-Instruct"), (object(), "embedded:smollm2-135m")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert load(tmp_path)[1].model.path == model


def test_the_model_that_is_asked_for(tmp_path, tiny_model, monkeypatch):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", qa(3))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "here").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    wanted = {"org/name": "org/name", "org/name@v2": "org/name@v2", "m.gguf": "../m.gguf", "here": "../here"}
    for given, written in (wanted | {"embedded:tiny-llava": "embedded:tiny-llava"}).items():
        assert run(["init", "data", "--model", given, "--force"]) == 0
        assert load_config(tmp_path / "data" / "merit.yaml").model.path == written


def test_a_model_that_cannot_be_one_is_told_before_anything_is_written(tmp_path, capsys):
    write(tmp_path / "a.jsonl", qa(3))
    cases = {
        "embedded:none": "no embedded model 'none'",
        "../a b": "neither a folder here nor a Hub id",
        "gone.gguf": "no such file",
        str(tmp_path): "there is no config.json in it",
        str(tmp_path / "a.jsonl"): "this is a file; a model is a folder",
    }
    for given, said in cases.items():
        assert run(["init", str(tmp_path), "--model", given]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "merit.yaml").exists()


def test_the_model_that_is_asked_for_goes_before_another_trainers(tmp_path):
    file = tmp_path / "theirs.yaml"
    file.write_text("base_model: org/old\nrevision_of_model: abc\ndatasets: [{path: a.jsonl, type: alpaca}]\n")
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    text = propose_config(file, home=tmp_path, model="org/new").text
    assert 'model: "org/new"' in text
    assert "abc" not in text


def test_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        propose_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no data file in this folder \(\.jsonl"):
        propose_config(tmp_path)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"^a\.jsonl: empty"):
        propose_config(tmp_path)


@pytest.mark.parametrize(("size", "expected"), [(1, 512), (600_000, 512), (1_300_000, 2048), (1_000_000_000, 16_384)])
def test_the_batch_follows_the_size_of_the_data(size, expected):
    assert _batch_tokens(size) == expected


def test_the_published_method(tmp_path):
    write(tmp_path / "one.jsonl", qa(20))
    with pytest.raises(InputError, match="the published method splits a mixture"):
        propose_config(tmp_path, published=True)
    write(tmp_path / "two.jsonl", qa(20))
    (tmp_path / "merit.yaml").write_text(propose_config(tmp_path, published=True).text, encoding="utf-8")
    config = load_config(tmp_path / "merit.yaml")
    assert config.method == "published"
    assert config.calibration.sketch == "flat"


def test_splits_of_one_dataset_are_not_trained_on(tmp_path):
    for name in ("train", "validation", "test", "squad_train", "squad-dev", "other", "lone_test", "testing grounds"):
        write(tmp_path / f"{name}.jsonl", qa(30))
    write(tmp_path / "gsm-train-00000-of-00001.jsonl", qa(30))
    write(tmp_path / "gsm-test-00000-of-00001.jsonl", qa(30))
    _, config = load(tmp_path)
    assert {item.path for item in config.evaluate.unseen.values()} == {
        "validation.jsonl", "test.jsonl", "squad-dev.jsonl", "gsm-test-00000-of-00001.jsonl"
    }  # fmt: skip
    # A test file alone may be all that there is of a dataset.
    assert {"lone_test.jsonl", "testing grounds.jsonl", "other.jsonl", "squad_train.jsonl", "train.jsonl"} < {
        item.path for item in config.mixture.values()
    }
    assert len(config.mixture) == 6
    (note,) = propose_config(tmp_path).notes
    assert note.startswith("gsm-test-00000-of-00001.jsonl, squad-dev.jsonl, test.jsonl, validation.jsonl: splits")
    report = check_mixture(config, tmp_path, make_tokenizer())
    assert report.ok


def test_split_names_in_front_and_in_the_middle(tmp_path):
    for name in ("train_sft", "test_sft", "test_gen", "squad_train_v2", "squad_dev_v2", "squad_dev_v1"):
        write(tmp_path / f"{name}.jsonl", qa(30))
    config = load(tmp_path)[1]
    assert set(config.evaluate.unseen) == {"test_sft", "squad_dev_v2"}
    assert set(config.mixture) == {"train_sft", "test_gen", "squad_train_v2", "squad_dev_v1"}


def test_parts_of_two_files_whose_names_begin_alike(tmp_path):
    for name in ("code", "code-hard"):
        for number in range(2):
            write(tmp_path / f"{name}-{number:05d}-of-00002.jsonl", qa(5))
    _, config = load(tmp_path)
    assert {name: item.path for name, item in config.mixture.items()} == {
        "code": "code-0000*-of-00002.jsonl", "code-hard": "code-hard-*-of-00002.jsonl"
    }  # fmt: skip


def test_parts_of_one_file_are_one_dataset(tmp_path):
    for part in range(3):
        write(tmp_path / f"train-0000{part}-of-00003.jsonl", qa(20, 20 * part))
    for part in range(2):
        write(tmp_path / f"test-0000{part}-of-00004.jsonl", qa(20, 100 + 20 * part))
    write(tmp_path / "other-00000-of-00001.jsonl", qa(20, 200))
    config = load(tmp_path)[1]
    assert {name: item.path for name, item in config.mixture.items()} == {
        "other": "other-00000-of-00001.jsonl", "train": "train-*-of-00003.jsonl"
    }  # fmt: skip
    assert config.evaluate.unseen["test"].path == "test-*-of-00004.jsonl"
    assert "test-*-of-00004.jsonl: only 2 of its 4 parts are here" in propose_config(tmp_path).notes
    assert [item.rows for item in check_mixture(config, tmp_path, make_tokenizer()).datasets] == [20, 60, 40]


def test_folders_are_read_where_the_data_lie_in_them(tmp_path):
    for name in ("data", "runs", ".cache"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train-00000-of-00001.jsonl", qa(30))
    config = load(tmp_path)[1]
    assert {name: item.path for name, item in config.mixture.items()} == {"train": "data/train-00000-of-00001.jsonl"}
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.jsonl", qa(30))
    config = load(tmp_path)[1]
    assert set(config.mixture) == {"data-train", "train-a"}
    assert set(config.evaluate.unseen) == {"test-a"}
    assert check_mixture(config, tmp_path, make_tokenizer()).ok
    write(tmp_path / "top.jsonl", qa(30))
    assert list(load(tmp_path)[1].mixture) == ["top"]
    assert {note.split(":")[1] for note in propose_config(tmp_path).notes} == {
        f" the folder {name}" for name in ("data", "test", "train")
    }


def test_every_file_that_is_left_out_is_named(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"strange": 1}])
    with pytest.raises(InputError) as caught:
        propose_config(tmp_path)
    assert all(name in str(caught.value) for name in ("a.jsonl", "b.jsonl"))
    write(tmp_path / "good.jsonl", qa(30))
    for name in ("more.jsonl.gz", "shard.arrow", "packed.parquet.gz", "packed.jsonl.xz", "table.xlsx"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "deep.jsonl", qa(3))
    text, config = load(tmp_path)
    notes = propose_config(tmp_path).notes
    for name in ("a.jsonl", "b.jsonl", "more.jsonl.gz", "shard.arrow", "packed.parquet.gz", "packed.jsonl.xz",
                 "table.xlsx", "sub"):  # fmt: skip
        assert any(name in note for note in notes)
        assert any(name in line for line in text.splitlines() if line.strip().startswith("#"))
    assert list(config.mixture) == ["good"]


def test_check_shows_the_examples_of_any_dataset(tmp_path, tiny_model, capsys):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.jsonl", [{"question": f"{name} {i}?", "answer": f"{i}"} for i in range(30)])
    text = propose_config(tmp_path).text.splitlines()
    file = tmp_path / "merit.yaml"
    file.write_text("\n".join(f"model: {tiny_model}" if line.startswith("model:") else line for line in text))
    merit = Command(capsys)
    assert "── d" not in merit("check", file).out
    shown = merit("check", file, "--show", "d")
    assert shown.code == 0, shown.err
    assert shown.out.count("── d") == 3
    assert "── a" not in shown.out
    wrong = merit("check", file, "--show", "e")
    assert wrong.code == 2
    assert "no dataset 'e'" in wrong.err
