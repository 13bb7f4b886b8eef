"""Output folders of a merge while they are written: hidden siblings, renamed into place once all of them are whole.

The journal in the first of them says which blocks are on disk, so that a killed merge goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.files import disk_errors, fsync_dir
from merit.base.kept import checked_line, checked_lines
from merit.base.locks import take
from merit.merge.plan import Output

JOURNAL = ".journal.jsonl"
Hashed = list[list[Any]]  # a shard each: bytes, and their XXH3 in hex
_READY = checked_line({"ready": True})


class Staging:
    """The folders of one merge. The first holds the journal, and is renamed last.

    Hidden, and not named `*.part`: a run sweeps such leftovers away, but these are worth resuming from.
    """

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._targets = [output.folder for output in outputs]
        self.folders = [path.with_name(f".{path.name}.merging") for path in self._targets]

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuses an output that is there already, or lies inside an input.

        Raises:
            InputError: names the folder.
        """
        renaming = Journal.is_ready(self.folders[0])
        for path in self._targets:
            if (path.exists() or path.is_symlink()) and not renaming:
                raise InputError("exists already; name a new folder, or remove it first", file=path, field="output")
            for folder in inputs:
                if path.resolve().is_relative_to(folder.resolve()):
                    raise InputError(f"lies inside the input {folder}", file=path, field="output")

    def open(self, mark: str) -> Journal:
        """Makes the folders, or finds those of a killed merge; what another merge left there is removed."""
        with disk_errors(self._targets[0]):
            # Once it is ready, folders that are missing here are in place already.
            for folder in self.folders[:1] if Journal.is_ready(self.folders[0]) else self.folders:
                folder.mkdir(parents=True, exist_ok=True)
            journal = Journal(self.folders[0], mark)
            if not journal.resumed:
                for folder in self.folders:
                    folder.mkdir(exist_ok=True)
                    for path in folder.iterdir():
                        if path.is_dir():
                            shutil.rmtree(path)
                        elif path.name != JOURNAL:
                            path.unlink()
            return journal

    def publish(self) -> None:
        """Renames every folder that is not in place yet."""
        pairs = [*zip(self.folders, self._targets, strict=True)]
        with disk_errors(self._targets[0]):
            for folder, target in [*pairs[1:], pairs[0]]:
                if folder.exists():
                    folder.rename(target)
                    # Only now: without its journal, a folder killed before its rename would be begun anew.
                    (target / JOURNAL).unlink(missing_ok=True)
                    fsync_dir(target)
                    fsync_dir(target.parent)

    def discard(self) -> None:
        """Leaves nothing behind."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """Append-only lines. The first names what is being merged; each other, one block and its sums of squares, or what
    the files hold up to a block.

    A line is written only after its block's bytes are durable, so whatever the journal says is true after a power
    cut too. A line torn by a kill or damaged is dropped, with all that follow it.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        """Opens the journal of `folder`, or begins one. `mark` is the fingerprint of inputs, weights and options.

        Raises:
            InputError: another process writes this output.
        """
        self.path = folder / JOURNAL
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not take(self._handle):
            os.close(self._handle)
            raise InputError("another process is writing this merge; wait for it", file=folder)
        self._mark = mark
        self.done: dict[int, list[float]] = {}  # block → its sums of squares
        self.hashed: list[Hashed] = []  # an output each: what its shards held when all blocks in `done` were in them
        self.files: list[dict[str, str]] = []  # an output each, once it is ready: file → checksum
        self.ready = False  # everything is written; only renames are left
        self.resumed = self._load(mark)
        if not self.resumed:
            self.restart()

    def restart(self) -> None:
        """Forgets everything."""
        self.done, self.hashed, self.files, self.ready = {}, [], [], False
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._append([{"mark": self._mark}])

    @staticmethod
    def is_ready(folder: Path) -> bool:
        """Whether the merge in `folder` was whole, and died while it renamed."""
        try:
            return (folder / JOURNAL).read_bytes().endswith(_READY)
        except OSError:
            return False

    def add(self, blocks: dict[int, list[float]], whole: int, hashed: list[Hashed]) -> None:
        """Records finished blocks. Their bytes must be durable.

        Args:
            whole: all blocks before it are finished, and `hashed` is what the outputs' shards hold up to it. What is
                finished beyond it is merged again after a kill, because nothing would tell whether it is damaged.
        """
        self.done.update(blocks)
        lines = [{"block": number, "sums": sums} for number, sums in blocks.items()]
        self._append([*lines, {"whole": whole, "hashed": hashed}])

    def finish(self, files: list[dict[str, str]]) -> None:
        """Records that the outputs are complete, and what each holds: file → checksum."""
        self.files, self.ready = files, True
        self._append([{"files": files}, {"ready": True}])

    def close(self) -> None:
        """Releases the journal."""
        os.close(self._handle)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        text = b"".join(map(checked_line, lines))
        while text:
            text = text[os.write(self._handle, text) :]
        os.fsync(self._handle)

    def _load(self, mark: str) -> bool:
        with os.fdopen(os.dup(self._handle), "rb") as handle:
            lines, size = checked_lines(handle.read())
        if not lines or lines[0] != {"mark": mark}:
            return False
        done, whole = {}, 0
        try:
            for line in lines[1:]:
                if "block" in line:
                    done[int(line["block"])] = [float(value) for value in line["sums"]]
                elif "whole" in line:
                    whole = int(line["whole"])
                    self.hashed = [[[int(at), str(digest)] for at, digest in shards] for shards in line["hashed"]]
                elif "files" in line:
                    self.files = [{str(name): str(mark) for name, mark in files.items()} for files in line["files"]]
                else:
                    self.ready = True
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
            return False  # not a journal of ours: merge from the start
        self.done = {number: sums for number, sums in done.items() if number < whole}
        os.ftruncate(self._handle, size)
        os.lseek(self._handle, 0, os.SEEK_END)
        return True
