"""What hostile input has got through once, one test each: found by the campaign or by reading, and mended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from surfaces_weights import ADAPTER, ADAPTER_CONFIG, CONFIG, HEADER, INDEX, SINGLE, safetensors
from values import as_json

from merit.base.errors import InputError, Problems
from merit.base.files import read_json, write_json
from merit.config.sections import ModelConfig
from merit.config.yaml import read_yaml
from merit.conflict.similarity import load_similarity
from merit.data.files import ParquetFile
from merit.data.image import BadImage
from merit.data.image_fields import ImageSource
from merit.jobs.engines import slurm
from merit.jobs.job import JobRecord
from merit.merge.inputs import open_inputs
from merit.merge.recipe import read_mergekit
from merit.merge.side_files import copy_side_files
from merit.merge.staging import JOURNAL, Journal
from merit.models.adapter import Adapter
from merit.models.checkpoint import Checkpoint, read_header
from merit.models.source import resolve_model
from merit.models.vision import copy_image_files
from merit.pipeline import check_stage, finish_stage
from merit.run.events import read_events
from merit.run.guard import refuse_foreign, refuse_links
from merit.run.layout import RunDir
from merit.split.partition import Group, Partition
from merit.split.splitters.manual import manual_partition


def test_a_stage_record_names_only_files_of_its_run(tmp_path: Path) -> None:
    """What is damaged is removed before its stage runs again: a record once could have the user's home removed."""
    run = RunDir(tmp_path / "run")
    mine = tmp_path / "mine"
    mine.mkdir()
    run.mixture.parent.mkdir()
    run.mixture.write_text("{}")
    finish_stage(run, "mixture", {}, [run.mixture])
    record = json.loads(run.stage("mixture").read_text())
    for name in ("../mine", str(mine), ".", "a\0b"):
        write_json(run.stage("mixture"), {**record, "files": {name: "0"}})
        state = check_stage(run, "mixture", {})
        assert (state.fresh, state.damaged) == (False, ())
    write_json(run.stage("mixture"), {**record, "files": {"mixture.json": "0"}})
    assert check_stage(run, "mixture", {}).damaged == (run.mixture,)


def test_links_out_of_a_run_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "branches" / "00").mkdir(parents=True)
    (run / "branches" / "again").symlink_to("00")
    refuse_links(run)  # a link within
    (tmp_path / "alias").symlink_to(run)
    refuse_links(tmp_path / "alias")  # the user's own name for it
    (run / "branches" / "01").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of it") as caught:
        refuse_links(run)
    assert str(caught.value).startswith(f"{run}/branches/01: ")
    (run / "branches" / "01").unlink()
    (run / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="leads out of it"):
        refuse_links(run)


def test_a_pipe_in_a_run_is_refused(tmp_path: Path) -> None:
    """Whoever reads it waits without end."""
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        refuse_links(tmp_path)
    for read in (read_json, read_header):
        with pytest.raises(InputError, match="plain file"):
            read(tmp_path / "events.jsonl")
    with pytest.raises(BadImage, match="no plain file"):
        ImageSource(tmp_path).ref("events.jsonl", "image").read()


def test_what_a_merge_copies_beside_weights_lies_in_the_input(tmp_path: Path) -> None:
    """A stranger's LICENSE that is a link to a key must not end up in a folder that is published."""
    (tmp_path / "key").write_text("secret")
    source, target = tmp_path / "m", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for name in ("LICENSE", "tokenizer.json", "preprocessor_config.json"):
        (source / name).symlink_to(tmp_path / "key")
    (source / "NOTICE").write_text("theirs")
    copy_side_files([source], target)
    copy_image_files(source, target)
    assert [file.name for file in target.iterdir()] == ["NOTICE"]
    # The Hub's cache is made of links, but into the same repository.
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blob").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blob")
    copy_side_files([snapshot], target)
    assert (target / "tokenizer.json").read_text() == "{}"


def test_a_run_does_not_begin_in_a_folder_of_the_users(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    refuse_foreign(run)  # nothing of it would be touched
    run.card.write_text("mine")
    with pytest.raises(InputError, match=r"holds `README.md`, but is no run directory"):
        refuse_foreign(run)
    run.state.mkdir()
    refuse_foreign(run)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "file:///x.png"])
def test_an_image_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    source = ImageSource(tmp_path / "data")
    with pytest.raises(BadImage, match=r"lies outside of .*; set `image_folder`"):
        source.ref(name, "image")
    with pytest.raises(BadImage, match="lies outside of"):
        source.ref({"bytes": None, "path": name}, "image")
    for inside in ("a.png", "b/../a.png", str(tmp_path / "data" / "a.png")):
        assert source.ref(inside, "image").path is not None
    # Only what `datasets` itself has downloaded may lie elsewhere.
    hub = ImageSource(None, caches=(tmp_path / "cache",))
    assert hub.ref({"bytes": None, "path": str(tmp_path / "cache" / "a.png")}, "image").path is not None
    with pytest.raises(BadImage):
        hub.ref({"bytes": None, "path": str(tmp_path / "a.png")}, "image")


def _model(folder: Path, index: Any = None, header: Any = HEADER, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes(as_json({**CONFIG, **config}))
    (folder / (SINGLE if index is None else "a.safetensors")).write_bytes(safetensors(header))
    if index is not None:
        (folder / INDEX).write_bytes(as_json(index))
    return folder


def test_a_shard_lies_beside_its_index(tmp_path: Path) -> None:
    _model(tmp_path / "other")
    index = {"weight_map": dict.fromkeys(HEADER, "../other/model.safetensors")}
    folder = _model(tmp_path / "m", index)
    with pytest.raises(InputError, match="no shard in this folder"):
        resolve_model(ModelConfig(path=str(folder)), tmp_path)
    with pytest.raises(InputError, match="no shard in this folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("kind", [["llama"], {"a": 1}, 7, None])
def test_a_model_type_is_a_word(kind: Any, tmp_path: Path) -> None:
    folder = _model(tmp_path / "m", model_type=kind, auto_map={"AutoConfig": "x.X"})
    with pytest.raises(InputError, match="`model_type` is missing"):
        resolve_model(ModelConfig(path=str(folder)), tmp_path)


@pytest.mark.parametrize("end", ["72", 72.0, [72], None])
def test_offsets_of_another_type_are_damage(end: Any, tmp_path: Path) -> None:
    name = "lm_head.weight"
    folder = _model(tmp_path / "m", header={name: {"dtype": "F32", "shape": [18], "data_offsets": [0, end]}})
    with pytest.raises(InputError, match="not a whole safetensors file"):
        resolve_model(ModelConfig(path=str(folder)), tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": {"dtype": ["F32"], "shape": [18], "data_offsets": [0, 72]}}, "unknown type"),
        ({"a": {"dtype": {}, "shape": [18], "data_offsets": [0, 72]}}, "unknown type"),
        ({"__metadata__": "pt", **{key: HEADER[key] for key in HEADER if key != "__metadata__"}}, "must hold text"),
        ({**HEADER, "__metadata__": {"format": 7}}, "must hold text"),
        ({**HEADER, "__metadata__": {"x": "\ud800"}}, "damaged header"),
        ({**HEADER, "__metadata__": {"x": float("nan")}}, "not JSON"),
    ],
)
def test_headers_that_safetensors_refuses(header: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors(header))
    with pytest.raises(InputError, match=said):
        read_header(tmp_path / "x.safetensors")


def _adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(as_json({**ADAPTER_CONFIG, **config}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(ADAPTER, 16))
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"alpha_pattern": "q_proj"}, "must be an object"),
        ({"alpha_pattern": {"(a+)+": 1}}, "may never end"),
        ({"alpha_pattern": {"x" * 400: 1}}, "may never end"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
        ({"alpha_pattern": {}, "lora_alpha": 10**400}, "is not a number"),
        ({"alpha_pattern": {}, "lora_alpha": True}, "is not a number"),
    ],
)
def test_settings_of_an_adapter(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = Checkpoint.open(_model(tmp_path / "base"))
    with pytest.raises(InputError, match=said):
        Adapter.open(_adapter(tmp_path / "a", **config), base)


def test_an_adapter_does_not_choose_its_base(tmp_path: Path) -> None:
    """It names a folder; that it is opened is for the user to say."""
    base = _model(tmp_path / "base")
    adapter = _adapter(tmp_path / "a", base_model_name_or_path=str(base), alpha_pattern={})
    with pytest.raises(InputError, match=f"trained on {base}; name its base with --base"):
        open_inputs([adapter], None)
    assert open_inputs([adapter], base).base is not None


BOMB = "a: &a [x, x]\nmerge_method: &b [*a, *a]\n"


@pytest.mark.parametrize(
    "text", [BOMB, "a: !!bool maybe", "a: !!int x", "a: 2020-99-99", 'a: "\\ud800"', "a: !!timestamp x"]
)
def test_yaml_that_people_write_by_hand(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    for read in (read_yaml, read_mergekit, lambda path: manual_partition(path, {"x": 1})):
        with pytest.raises(InputError) as caught:
            read(file)
        assert caught.value.line is not None
        assert len(str(caught.value)) < 400


def test_records_and_half_surrogate_pairs(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is half surrogate pairs to Python; it is the same when read again."""
    partition = Partition(splitter="manual", groups=[Group(datasets=["a\udcff"], tokens=1)], scores={}, cuts=[])
    partition.save(tmp_path / "x.json")
    assert Partition.load(tmp_path / "x.json") == partition
    assert (tmp_path / "x.json").read_bytes().isascii()


@pytest.mark.parametrize("digits", [str(2**63), str(-(2**63) - 1), "1" + "0" * 400, "1" + "0" * 5000], ids=len)
def test_numbers_in_records_have_64_bits(digits: str, tmp_path: Path) -> None:
    partition = Partition(splitter="manual", groups=[Group(datasets=["a"], tokens=1)], scores={}, cuts=[])
    file = tmp_path / "x.json"
    file.write_text(partition.model_dump_json().replace('"tokens":1', f'"tokens":{digits}'))
    with pytest.raises(InputError, match="64 bits"):
        Partition.load(file)
    if len(digits) < 4_000:
        assert read_json(file)  # others than ours may have such numbers


@pytest.mark.parametrize(
    "value", [{"engine": ["slurm"], "state": "running"}, {"engine": "slurm", "state": "x"}, [], {"engine": "a", "b": 1}]
)
def test_a_job_record_of_other_types_is_none(value: Any, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_bytes(as_json(value))
    assert JobRecord.load(tmp_path / "job.json") is None


def test_slurm_is_told_ids_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def call(command: list[str]) -> Any:
        told.append(command)
        return type("Ran", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(slurm, "_call", call)
    slurm.cancel_jobs(["--user=me", "-u", "7", "8_1", "9;id", "", "1" * 99])
    slurm.cancel_jobs(["--user=me"])
    slurm.read_queue(["--me", "all"])
    assert told == [["scancel", "--quiet", "7", "8_1"]]


def test_lines_of_logs_that_are_no_json(tmp_path: Path) -> None:
    lines = ["1" * 5000, "[" * 100_000, '{"event": "end"}', "\x00", '{"a": ' * 20_000]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert read_events(tmp_path / "events.jsonl") == [{"event": "end"}]


@pytest.mark.parametrize(
    "line", ["7", '{"block": "x"}', '{"block": 1}', '{"block": 1, "sums": 7}', '{"block": 1e999, "sums": []}']
)
def test_a_journal_of_another_making_is_begun_anew(line: str, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(f'{{"mark":"m"}}\n{line}\n')
    journal = Journal(tmp_path, "m")
    journal.close()
    assert (journal.resumed, journal.done) == (False, {})


def test_messages_have_an_end() -> None:
    error = InputError("x" * 1_000_000, file="f" * 1_000_000, field="y" * 1_000_000)
    assert len(str(error)) < 3_100
    many = str(Problems([error] * 5000)).splitlines()
    assert len(many) == 201
    assert many[-1] == "and 4,800 more problems"


def test_a_parquet_file_that_repeats_one_long_text(tmp_path: Path) -> None:
    """Twenty kilobytes on disk, two gigabytes when a batch of its rows is made at once."""
    text = "x" * 20_000_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([text]))
    table = pa.table({"prompt": column, "completion": ["a"] * 100})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", dictionary_pagesize_limit=2**30)
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    rows = ParquetFile(tmp_path / "x.parquet", "x.parquet").rows()
    first = next(rows)
    assert pa.total_allocated_bytes() - before < 200_000_000
    assert first.value == {"prompt": text, "completion": "a"}
    rows.close()


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00 and no more",
        b"PK\x03\x04 begins as a zip archive does",
        b"\x93NUMPY\x01\x00\x02\x00{\n" + bytes(100),  # NumPy itself lets a TokenError out
    ],
)
def test_a_similarity_matrix_that_is_none(tmp_path, content):
    """With checksums that fit it, only reading it can tell."""
    file = tmp_path / "similarity.npy"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"similarity\.npy: damaged \(.*\); run `merit conflict` again"):
        load_similarity(file)
