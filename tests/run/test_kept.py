"""Kept results: whole and still true, or a reason why not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import xxhash
from pydantic import Field

from merit.base.kept import Files, Kept, checksums, damaged, files_below, keep, kept, made_once
from merit.base.record import Record, Sealed


class Result(Sealed):
    fingerprint: str
    parts: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A result with two files."""
    for name in ("a.bin", "below/b.bin"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(name.encode())
    root = tmp_path / "files"
    keep(tmp_path / "DONE", Result(fingerprint="1", parts={"x": "1"}), root, files_below(root))
    return tmp_path


def look(made: Path, depends=None, **how) -> Kept[Result]:
    return kept(made / "DONE", Result, depends, Files(made / "files", **how))


def test_what_was_kept_comes_back(made):
    found = look(made, {"fingerprint": "1", "parts": {"x": "1"}})
    assert found.fresh
    assert found.record is not None
    assert found.record.files == {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.bin", "below/b.bin")}
    assert found.why == ""


def test_nothing_was_kept(tmp_path):
    assert kept(tmp_path / "DONE", Result) == Kept()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": "1"}'])
def test_a_damaged_record_holds_nothing(content, made):
    (made / "DONE").write_text(content)
    assert look(made) == Kept(why="its record is damaged")


@pytest.mark.parametrize(
    ("depends", "why"),
    [
        ({"fingerprint": "2"}, "fingerprint changed"),
        ({"fingerprint": frozenset({"2", "3"})}, "fingerprint changed"),
        ({"fingerprint": frozenset({"1", "3"}), "parts": {"x": "2", "y": "1"}}, "x, y changed"),
        ({"parts": {}}, "x changed"),
    ],
)
def test_what_it_rests_on_changed(depends, why, made):
    found = look(made, depends)
    assert (found.record, found.why) == (None, why)


def test_damage_is_named(made):
    path = made / "files" / "below" / "b.bin"
    path.write_bytes(b"below/c.bin")
    assert look(made) == Kept(None, "below/b.bin damaged or gone", (), (path,))
    assert look(made, digest=None).fresh  # it is there
    path.unlink()
    assert look(made, digest=None).damaged == (path,)
    found = look(made, {"fingerprint": "2"})
    assert found.damaged == ()  # it holds no more, so nothing is read
    found = look(made, {"fingerprint": "2"}, always=True)
    assert found.why == "fingerprint changed; below/b.bin damaged or gone"


def test_a_file_too_many(made):
    other = made / "files" / "c.bin"
    other.write_bytes(b"")
    assert look(made).fresh
    assert look(made, alone=True).damaged == (other,)


def test_its_own_record_is_no_file_too_many(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"a")
    keep(tmp_path / "DONE", Result(fingerprint="1"), tmp_path, files_below(tmp_path, "DONE"))
    assert kept(tmp_path / "DONE", Result, files=Files(tmp_path, alone=True)).fresh


@pytest.mark.parametrize("name", ["../out", ".", "a\0b", "/etc/hostname"])
def test_a_record_names_only_files_of_its_own(name, made):
    Result(fingerprint="1", files={name: "0"}).save(made / "DONE")
    assert look(made) == Kept(why="its record is damaged")


def test_checksums(made):
    root = made / "files"
    marks = checksums(root, [*files_below(root), root / "gone"])
    assert [*marks] == ["a.bin", "below/b.bin"]
    (root / "a.bin").write_bytes(b"")
    assert damaged(root, {**marks, "gone": "0"}) == {"a.bin": "changed", "gone": "gone"}
    (root / "d.bin.part").write_bytes(b"")
    assert files_below(root, "a.bin") == [root / "below" / "b.bin"]


def test_a_checksum_says_what_it_was_taken_with(made):
    """Merges of today have XXH3, those of merit 0.1.0 SHA-256; a run's record can hold both."""
    root = made / "files"
    marks = checksums(root, [root / "a.bin"]) | {"below/b.bin": f"xxh3:{xxhash.xxh3_128(b'below/b.bin').hexdigest()}"}
    assert damaged(root, marks) == {}
    assert damaged(root, marks | {"a.bin": "xxh3:" + marks["a.bin"]}) == {"a.bin": "changed"}
    for name in marks:
        (root / name).write_bytes(b"other")
    assert damaged(root, marks) == dict.fromkeys(marks, "changed")


def test_a_folder_is_made_once(tmp_path):
    made = []

    def make(part: Path) -> None:
        made.append(part)
        (part / "config.json").write_text("{}")

    folder = tmp_path / "cache" / "model"
    for _ in range(2):
        assert made_once(folder, make, holds="config.json") == folder
    assert len(made) == 1
    (folder / "config.json").unlink()
    assert made_once(folder, make).is_dir()
    assert len(made) == 1
    made_once(folder, make, holds="config.json")
    assert (len(made), (folder / "config.json").is_file()) == (2, True)


def test_a_folder_whose_making_fails_is_not_there(tmp_path):
    def fail(part: Path) -> None:
        (part / "half").write_text("")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made_once(tmp_path / "model", fail)
    assert not any(tmp_path.iterdir())


def test_a_record_without_files_is_asked_only_what_it_rests_on(tmp_path):
    class Plain(Record):
        mark: str

    Plain(mark="1").save(tmp_path / "plain.json")
    assert kept(tmp_path / "plain.json", Plain, {"mark": "1"}).record == Plain(mark="1")
    assert not kept(tmp_path / "plain.json", Plain, {"mark": "2"}).fresh
