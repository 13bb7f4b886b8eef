"""What a new merge of a method replaces."""

from __future__ import annotations

from pathlib import Path

from merit.config.run import BaselineConfig
from merit.context import Method
from merit.merge.step import _clear
from merit.run.layout import MethodDir


def test_copies_of_a_merge_stay(tmp_path: Path) -> None:
    """Who keeps the merge of before under another name, keeps it."""
    ours, theirs = ["merged", "merged@0.5", ".merged.merging", "momentum"], ["merged-before", "merged.bak", "notes"]
    for name in (*ours, *theirs):
        (tmp_path / name).mkdir()
    (tmp_path / "merged.txt").touch()
    _clear(Method("merit", MethodDir(tmp_path), BaselineConfig(splitter="pca"), rounds=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "merged.txt"])
