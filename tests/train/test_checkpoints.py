"""Which checkpoint a branch resumes from, and what becomes of its log."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from merit.run.layout import BranchDir
from merit.train.callbacks import _cut_log
from merit.train.checkpoints import Counters, drop_older, mark_whole, newest_checkpoint
from merit.train.spec import MARKER, BranchResult, finished_branch


def _checkpoint(branch: BranchDir, step: int, marker: str | None) -> Path:
    folder = branch.training_state / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if marker is not None:
        (folder / MARKER).write_text(marker)
    return folder


def test_the_newest_whole_one_wins_and_the_rest_goes(tmp_path: Path) -> None:
    branch = BranchDir(tmp_path)
    _whole(branch, 9)
    newest = _whole(branch, 10)  # not by name: "9" sorts after "10"
    cut_short = _checkpoint(branch, 11, None)
    torn = _checkpoint(branch, 12, '{"supervised_tok')
    found = newest_checkpoint(branch)
    assert found is not None
    assert found[0] == newest
    assert found[1].supervised_tokens == 10
    assert found[1].seconds >= 1.5
    assert not cut_short.exists()
    assert not torn.exists()


def _whole(branch: BranchDir, step: int) -> Path:
    folder = _checkpoint(branch, step, None)
    for name in ("model.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(b"12345678")
    mark_whole(branch, step, Counters(supervised_tokens=step, seconds=1.5))
    return folder


@pytest.mark.parametrize("harm", ["missing", "short", "flipped", "other counters"])
def test_one_that_is_not_as_it_was_written_is_not_whole(tmp_path: Path, harm: str) -> None:
    branch = BranchDir(tmp_path)
    older, newer = _whole(branch, 1), _whole(branch, 2)
    if harm == "missing":
        (newer / "optimizer.pt").unlink()
    elif harm == "other counters":
        (newer / MARKER).write_text(
            (newer / MARKER).read_text().replace('"supervised_tokens": 2', '"supervised_tokens": 3')
        )
    else:
        (newer / "model.safetensors").write_bytes(b"1234" if harm == "short" else b"12345679")
    found = newest_checkpoint(branch)
    assert found is not None
    assert (found[0], found[1].supervised_tokens) == (older, 1)
    assert not newer.exists()


def test_the_oldest_goes_by_step_and_its_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = BranchDir(tmp_path)
    folders = [_whole(branch, step) for step in (8, 9, 10)]
    os.utime(folders[0], (2e9, 2e9))  # removing a part of a folder makes it look the newest
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before any of the big files went
        drop_older(branch)
    assert not (folders[0] / MARKER).exists()
    assert newest_checkpoint(branch) is not None
    assert sorted(branch.training_state.iterdir()) == sorted(folders[1:])


def test_none_at_all(tmp_path: Path) -> None:
    assert newest_checkpoint(BranchDir(tmp_path)) is None


def test_the_log_loses_what_will_be_trained_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    _cut_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_job_killed_after_its_last_word_is_done_and_tidied_up(tmp_path: Path) -> None:
    branch = BranchDir(tmp_path)
    leftover = _checkpoint(branch, 5, None)
    branch.checkpoint.mkdir()
    (branch.checkpoint / "config.json").write_text("{}")
    result = BranchResult(
        fingerprint="mine",
        supervised_tokens=1,
        examples=1,
        steps=5,
        seconds=1,
        final_loss=None,
        files={"checkpoint/config.json": "0"},
    )
    result.save(branch.done)
    assert finished_branch(branch, "another's") is None
    assert finished_branch(branch, "mine") == result
    assert not leftover.exists()
    (branch.checkpoint / "config.json").unlink()
    assert finished_branch(branch, "mine") is None
