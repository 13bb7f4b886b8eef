"""A full disk ends a run with 1 and can be resumed; a place that may not be written ends it with 2."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command, config_text, tree


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def file(tiny_model, four_files) -> Path:
    path = four_files / "merit.yaml"
    path.write_text(config_text(tiny_model))
    return path


def mount(*arguments: str | Path) -> None:
    try:
        subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small or read-only file system needs the right to mount one: {error}")


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str | Path) -> Iterator[Path]:
    folder.mkdir()
    mount(*arguments, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# kB that are left of the disk: too few for the lock, the data, the gradients, the branches.
@pytest.mark.parametrize(
    ("kilobytes", "until"), [(4, "split"), (24, "split"), (48, "split"), (100, "split"), (400, "train")]
)
def test_a_full_disk(kilobytes, until, merit: Command, file, warm_jobs, tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - kilobytes * 1024))
        full = merit("run", file, "-o", disk / "run", "--until", until)
        assert full.code == 1, full
        assert "the disk is full; free some space and run again to resume" in full.lines[-1]
        assert not any(line.startswith(" ") for line in full.lines)
        filler.unlink()
        again = merit("run", file, "-o", disk / "run", "--until", until)
        assert again.code == 0, again
        assert (disk / "run" / "split" / "partition.json").exists()
        assert (disk / "run" / "branches" / "01" / "DONE").exists() == (until == "train")


def test_a_read_only_file_system(merit: Command, file, tmp_path):
    """Permission bits do not stop root, who may run these tests; a read-only mount does."""
    with mounted(tmp_path / "fixed", "-t", "tmpfs", "-o", "ro", "tmpfs") as disk:
        outcome = merit("run", file, "-o", disk / "a" / "run")
        assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
        assert outcome.lines[0].startswith(f"{disk}/a/run")
        assert outcome.lines[0].endswith("cannot write here (Read-only file system)")
        written = merit("init", file.parent, "-o", disk / "x.yaml")
        assert written.lines == [f"{disk}/x.yaml: cannot write here (Read-only file system)"]
        assert written.code == 2


def test_a_run_that_became_read_only(merit: Command, file, tmp_path):
    with mounted(tmp_path / "fixed", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:
        assert merit("run", file, "-o", disk / "run", "--until", "split").code == 0
        before = tree(disk)
        mount("-o", "remount,ro", disk)
        outcome = merit("run", disk / "run")
        assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
        assert "Read-only file system" in outcome.lines[0]
        assert tree(disk) == before


@pytest.mark.parametrize("place", ["chat.jsonl", "chat.jsonl/run", "chat.jsonl/a/b"])
def test_a_file_where_a_folder_should_be(place, merit: Command, file):
    before = tree(file.parent)
    outcome = merit("run", file, "-o", file.parent / place)
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
    assert str(file.parent / "chat.jsonl") in outcome.lines[0]
    assert tree(file.parent) == before


def test_a_name_that_is_too_long(merit: Command, file, tmp_path):
    outcome = merit("run", file, "-o", tmp_path / ("x" * 300))
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
    assert "File name too long" in outcome.lines[0]
