"""The store that machines without a common disk share."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.jobs.store import GoneFromHere, Store


def test_files_go_and_come_back(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/far")
    (tmp_path / "near").write_bytes(b"twelve bytes")
    store.put(tmp_path / "near", "a/b")
    assert store.names("a") == ["a/b"]
    assert store.get("a/b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"twelve bytes"
    assert (store.sent, store.received) == (12, 12)
    store.remove("a")
    assert not store.get("a/b", tmp_path / "again")
    with pytest.raises(InputError, match="leaves the store"):
        store.put(tmp_path / "near", "../b")


def test_a_file_that_is_gone_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer drops old checkpoints while they are on their way; that is no failure of the store."""
    monkeypatch.setattr("merit.jobs.store.time", None)  # no waiting
    with pytest.raises(GoneFromHere):
        Store(f"file://{tmp_path}/far").put(tmp_path / "gone", "a")


def test_two_jobs_of_one_machine_may_fetch_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sees, nor takes away, the half that the other has got."""
    store = Store(f"file://{tmp_path}/far")
    (tmp_path / "near").write_bytes(b"twelve bytes")
    store.put(tmp_path / "near", "a")
    whole, calls = Store._get, []

    def slowly(self: Store, source: str, part: Path) -> bool:
        calls.append(part)
        if len(calls) == 1:
            part.write_bytes(b"twel")
            with monkeypatch.context() as other:
                other.setattr("merit.jobs.store.os.getpid", lambda: -1)
                assert store.get("a", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == b"twelve bytes"
            assert part.read_bytes() == b"twel"
        return whole(self, source, part)

    monkeypatch.setattr(Store, "_get", slowly)
    assert store.get("a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"twelve bytes"
    assert len(calls) == 2
