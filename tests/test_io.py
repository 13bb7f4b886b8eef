"""Atomic writes, safe names and paths, and what an operating system's error becomes."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.base.errors import InputError, StageError
from merit.base.files import (
    atomic_dir,
    atomic_path,
    disk_errors,
    inside,
    read_json,
    safe_name,
    sha256_file,
    sha256_files,
    sweep_parts,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with atomic_path(target) as part:
        part.write_text("half")
        assert not target.exists()
        assert part.parent == target.parent
    assert target.read_text() == "half"
    assert names(tmp_path) == ["a", "b.txt"]


def test_a_failure_keeps_the_old_file(tmp_path):
    target = tmp_path / "b.txt"
    write_text(target, "old")
    with pytest.raises(TypeError), atomic_path(target) as part:
        part.write_text(None if part.write_text("new") else "never")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["b.txt"]


def test_a_kill_leaves_the_old_file_and_a_part_that_is_swept(tmp_path):
    target = tmp_path / "b.txt"
    write_text(target, "old")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom merit.base.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as part:\n    part.write_text('new')\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    sweep_parts(tmp_path)
    assert names(tmp_path) == ["b.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "d"
    with atomic_dir(target) as part:
        (part / "one").write_text("1")
    with atomic_dir(target) as part:
        (part / "two").write_text("2")
    assert names(tmp_path) == ["d", "two"]
    with pytest.raises(InputError, match="cannot write here"), atomic_dir(target) as part:
        part.mkdir()
    assert names(tmp_path) == ["d", "two"]


def test_sweeping_stays_where_it_is_told(tmp_path):
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a.1.part", tmp_path / "below" / "b.2.part", tmp_path / "partial", tmp_path / "x.part.txt"):
        path.touch()
    (tmp_path / "folder.3.part").mkdir()
    (tmp_path / "folder.3.part" / "inside").touch()
    sweep_parts(tmp_path, below=False)
    assert names(tmp_path) == ["b.2.part", "below", "partial", "x.part.txt"]
    sweep_parts(tmp_path)
    assert names(tmp_path) == ["below", "partial", "x.part.txt"]
    sweep_parts(tmp_path / "nowhere")


def test_sweeping_spares_what_another_process_writes(tmp_path):
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a.json.1.part", tmp_path / "below" / "job.json.2.part", tmp_path / "job.json"):
        path.touch()
    sweep_parts(tmp_path, but="job.json")
    assert names(tmp_path) == ["below", "job.json", "job.json.2.part"]
    (tmp_path / "a.json.1.part").touch()
    sweep_parts(tmp_path, of="job.json")
    assert names(tmp_path) == ["a.json.1.part", "below", "job.json"]


def test_a_link_named_part_is_removed_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "x.part").symlink_to(outside)
    sweep_parts(folder)
    assert names(folder) == []
    assert names(outside) == ["precious"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, StageError, 1),
        (errno.EDQUOT, StageError, 1),
        (errno.EACCES, InputError, 2),
        (errno.EPERM, InputError, 2),
        (errno.EROFS, InputError, 2),
        (errno.ENOTDIR, InputError, 2),
        (errno.EISDIR, InputError, 2),
        (errno.ENAMETOOLONG, InputError, 2),
    ],
)
def test_errors_of_the_disk(number, kind, code):
    with pytest.raises(kind, match="/some/where") as caught, disk_errors(Path("/some/where")):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code


def test_a_full_disk_as_numpy_tells_it():
    with (
        pytest.raises(StageError, match="the disk is full"),
        disk_errors(Path("x")),
        Path("/dev/full").open("wb") as full,
    ):
        np.zeros(100_000).tofile(full)
    with pytest.raises(StageError, match="the disk is full"), disk_errors(Path("x")):
        raise OSError("1982 requested and 0 written")


def test_other_errors_pass():
    with pytest.raises(OSError, match="I/O") as caught, disk_errors(Path("x")):
        raise OSError(errno.EIO, "I/O error")
    assert not isinstance(caught.value, InputError | StageError)
    with pytest.raises(ConnectionError), disk_errors(Path("x")):
        raise ConnectionError


def test_json_goes_round(tmp_path):
    value = {"θ": [1, 2.5, None, True, "é\x1b\n"], "a": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_what_is_no_json_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json:1: not valid JSON: Expecting value"),
        (b'{"a": 1,\n"b": }', "a.json:2: not valid JSON: Expecting value"),
        (b'{"a": 1}\n{}', "a.json:2: not valid JSON: Extra data"),
        (b'"\xff"', "a.json: cannot be read: "),
        (b"[" * 100_000, "a.json: cannot be read: "),
        (b"9" * 10_000, "a.json: cannot be read: "),
    ],
)
def test_json_that_cannot_be_read(content, message, tmp_path):
    write_bytes(tmp_path / "a.json", content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_sha256(tmp_path):
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_file(tmp_path / "a").startswith("ba7816bf")


@pytest.mark.parametrize("name", ["gsm8k", "a.b-c_D", "9", "_x", "a" * 80])
def test_plain_names_stay(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "a/b", "../x", "é", "a b", "a\0b", "~", "a" * 81, "日本"]
)
def test_other_names_are_escaped(name):
    escaped = safe_name(name)
    assert escaped != name
    assert "/" not in escaped
    assert not escaped.startswith((".", "-"))


@given(st.lists(st.text(max_size=300), unique=True, min_size=2, max_size=8))
def test_names_are_told_apart_and_stay_in_their_folder(texts):
    escaped = [safe_name(text) for text in texts]
    assert len(set(escaped)) == len(texts)
    for name in escaped:
        assert name.isascii()
        assert 0 < len(name) <= 120
        assert Path("/run", name).resolve().parent == Path("/run")


def test_paths_stay_inside(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    assert inside(tmp_path, "a/../b") == tmp_path.resolve() / "b"
    for path in ("..", "a/../../b", "/etc/passwd", "link/passwd"):
        with pytest.raises(InputError, match="leaves the run directory"):
            inside(tmp_path, path)


@pytest.mark.parametrize("worth", [0, 2**26])
def test_checksums_of_many_files(worth, tmp_path, monkeypatch):
    """With threads and without."""
    monkeypatch.setattr("merit.base.files._WORTH_THREADS", worth)
    files = [tmp_path / f"{number}" for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000 * number)
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert sha256_files([*files, tmp_path / "gone", tmp_path]) == [*expected, None, None]
