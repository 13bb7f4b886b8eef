"""`merit init` on a single file and on the Hub."""

from __future__ import annotations

import types

import datasets
import huggingface_hub
import pytest
from chat_tokenizers import make_tokenizer
from test_build_mixture import qa, write

from merit.base.errors import InputError
from merit.cli.main import run
from merit.config import load_config
from merit.data.check import check_mixture
from merit.data.init import propose_config

COLLECTION = "org/tasks-64f9a55bb3115b4f513ec026"


def load(folder, *sources, **options):
    proposal = propose_config(*sources, home=folder, **options)
    (folder / "merit.yaml").write_text(proposal.text, encoding="utf-8")
    return proposal, load_config(folder / "merit.yaml")


def tasks(column="task"):
    return [{**row, column: ["add", "no", "copy"][n % 3]} for n, row in enumerate(qa(90))]


@pytest.mark.parametrize("column", ["source", "dataset", "task"])
def test_a_file_has_a_dataset_for_each_value_of_a_column(tmp_path, column):
    write(tmp_path / "all.jsonl", tasks(column))
    _, config = load(tmp_path, tmp_path / "all.jsonl")
    assert {name: item.where for name, item in config.mixture.items()} == {
        name: {column: name} for name in ("add", "no", "copy")
    }
    report = check_mixture(config, tmp_path, make_tokenizer())
    assert report.ok
    assert [item.rows for item in report.datasets] == [30, 30, 30]


def test_so_has_the_only_file_of_a_folder(tmp_path):
    write(tmp_path / "all.jsonl", tasks())
    assert run(["init", str(tmp_path)]) == 0
    assert list(load_config(tmp_path / "merit.yaml").mixture) == ["add", "no", "copy"]


def test_a_column_that_names_rows_is_no_list_of_datasets(tmp_path):
    write(tmp_path / "a.jsonl", [{**row, "source": f"http://a/{n}", "task": "one"} for n, row in enumerate(qa(90))])
    _, config = load(tmp_path, tmp_path / "a.jsonl")
    assert {name: item.where for name, item in config.mixture.items()} == {"a": {}}


@pytest.mark.parametrize(("values", "datasets"), [(64, 64), (65, 1)])
def test_a_column_has_at_most_64_values(tmp_path, values, datasets):
    write(tmp_path / "a.jsonl", [{**row, "task": f"t{n % values}"} for n, row in enumerate(qa(2 * values))])
    _, config = load(tmp_path, tmp_path / "a.jsonl")
    assert len(config.mixture) == datasets


def test_rows_that_are_in_no_dataset_are_told(tmp_path):
    write(tmp_path / "all.jsonl", [*tasks(), {**qa(1, 200)[0], "task": "lone"}, *qa(4, 300)])
    proposal, config = load(tmp_path, tmp_path / "all.jsonl")
    assert list(config.mixture) == ["add", "no", "copy"]
    assert "# lone: {path: all.jsonl, where: {task: lone}}  # left out: all.jsonl: fewer than 2 rows" in proposal.text
    assert "all.jsonl: rows without `task`, which are in no dataset: 4" in proposal.notes


def test_by_names_the_column(tmp_path, capsys):
    write(tmp_path / "all.jsonl", [{**row, "who": n % 2, "note": f"{n}"} for n, row in enumerate(qa(200))])
    _, config = load(tmp_path, tmp_path / "all.jsonl", by="who")
    assert [item.where for item in config.mixture.values()] == [{"who": 0}, {"who": 1}]
    for column, told in (("whom", "no column 'whom'; did you mean `who`?"), ("note", "more than 64 values")):
        assert run(["init", str(tmp_path / "all.jsonl"), "--by", column, "--force"]) == 2
        assert told in capsys.readouterr().err
    write(tmp_path / "b.jsonl", qa(3))
    with pytest.raises(InputError, match="is for one file"):
        propose_config(tmp_path, by="who")


def test_values_that_cannot_be_written_are_left_out(tmp_path):
    write(tmp_path / "all.jsonl", [*tasks(), *({**row, "task": "a\u202eb"} for row in qa(9, 500))])
    proposal, config = load(tmp_path, tmp_path / "all.jsonl")
    assert list(config.mixture) == ["add", "no", "copy"]
    assert all(line.isprintable() for line in proposal.text.splitlines())


def test_what_is_nowhere(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for source, told in (("nowhere.jsonl", "no such folder or file"), ("org/x.yaml", "no such"), ("a b/c", "no such")):
        with pytest.raises(InputError, match=told):
            propose_config(source)
    with pytest.raises(InputError, match="unknown kind of file"):
        propose_config(tmp_path / "notes.txt")


def test_the_hub_cannot_be_looked_at(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "get_dataset_config_names", refuse)
    proposal, config = load(tmp_path, "org/a", "https://huggingface.co/datasets/org/b")
    assert [item.path for item in config.mixture.values()] == ["org/a", "org/b"]
    assert proposal.text.count("not looked at; subset, split (train) and format are guesses") == 2
    assert [note.split(": ")[:2] for note in proposal.notes] == [["org/a", "not looked at"], ["org/b", "not looked at"]]
    assert config.train.batch_tokens == 16384  # nobody knows how large they are


@pytest.fixture
def hub(monkeypatch):
    """A Hub with three datasets, of which only the first rows may be read."""
    known = {
        "org/plain": {"default": ["train"]},
        "org/splits": {"main": ["train", "test", "extra"], "odd": ["train"]},
        "org/many": {"a": ["train"], "b": ["validation"]},
        "org/strange": {"default": ["train"]},
    }

    def load_dataset(path, name, split, streaming):
        assert streaming
        assert split in known[path][name or "default"]
        rows = [{"strange": "x"}] if path == "org/strange" else qa(20)
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: list(known[path]))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, name: known[path][name])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = [types.SimpleNamespace(item_type="dataset", item_id=name) for name in known]
    items.append(types.SimpleNamespace(item_type="model", item_id="org/model"))
    monkeypatch.setattr(huggingface_hub, "get_collection", lambda name: types.SimpleNamespace(items=items))


def test_subsets_and_splits_of_the_hub(tmp_path, hub):
    proposal, config = load(tmp_path, "org/plain", "org/splits", "org/many")
    found = {name: (item.path, item.subset, item.split) for name, item in config.mixture.items()}
    assert found == {
        "plain": ("org/plain", None, "train"),
        "splits": ("org/splits", "main", "train"),
        "many-a": ("org/many", "a", "train"),
        "many-b": ("org/many", "b", "validation"),
    }
    assert {name: item.split for name, item in config.evaluate.unseen.items()} == {"splits-test": "test"}
    assert proposal.text.count("# format: qa") == 5
    assert "org/splits: of its subsets only `main`; there are also odd" in proposal.notes
    assert "org/splits: not taken: the splits extra" in proposal.notes


def test_a_split_by_another_name_is_the_one_for_training(tmp_path, hub, monkeypatch):
    splits = {"org/chat": ["test_sft", "train_sft"], "org/bare": []}
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["default"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, name: splits[path])
    rows = datasets.Dataset.from_list(qa(20))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows.to_iterable_dataset())
    proposal, config = load(tmp_path, "org/chat", "org/bare")
    assert [(item.path, item.split) for item in config.mixture.values()] == [("org/chat", "train_sft")]
    assert "left out: org/bare: the subset default has no splits" in proposal.notes


def test_a_collection_is_its_datasets(tmp_path, hub):
    proposal, config = load(tmp_path, f"https://huggingface.co/collections/{COLLECTION}")
    assert set(config.mixture) == {"plain", "splits", "many-a", "many-b"}
    assert (
        '# strange: {path: "org/strange"}  # left out: org/strange: `mixture.strange.format`: no known' in proposal.text
    )


def test_a_collection_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(InputError, match=r"the collection cannot be looked at: .*offline"):
        propose_config(COLLECTION, home=tmp_path)
