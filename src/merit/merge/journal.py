"""The journal of a merge under way: which blocks are on disk, so that a killed merge goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from merit.errors import InputError

NAME = ".journal.jsonl"
_READY = b'{"ready":true}\n'


class Journal:
    """Append-only lines. The first names what is being merged; each other, one block and its sums of squares.

    A line is written only after its block's bytes are durable, so whatever the journal says is true after a power
    cut too. A line torn by a kill is dropped.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        """Opens the journal of `folder`, or begins one. `mark` is the fingerprint of inputs, weights and options.

        Raises:
            InputError: another process writes this output.
        """
        self.path = folder / NAME
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise InputError("another process is writing this merge; wait for it", file=folder) from None
        self.done: dict[int, list[float]] = {}  # block → its sums of squares
        self.ready = False  # everything is written; only renames are left
        self.resumed = self._load(mark)
        if not self.resumed:
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            self._append([{"mark": mark}])

    @staticmethod
    def is_ready(folder: Path) -> bool:
        """Whether the merge in `folder` was whole, and died while it renamed."""
        try:
            return (folder / NAME).read_bytes().endswith(_READY)
        except OSError:
            return False

    def add(self, blocks: dict[int, list[float]]) -> None:
        """Records finished blocks. Their bytes must be durable."""
        self.done.update(blocks)
        self._append([{"block": number, "sums": sums} for number, sums in blocks.items()])

    def finish(self) -> None:
        """Records that the folder is complete."""
        self.ready = True
        self._append([{"ready": True}])

    def close(self) -> None:
        """Releases the journal."""
        os.close(self._handle)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        while text:
            text = text[os.write(self._handle, text) :]
        os.fsync(self._handle)

    def _load(self, mark: str) -> bool:
        with os.fdopen(os.dup(self._handle), "rb") as handle:
            data = handle.read()
        whole = data[: data.rfind(b"\n") + 1]
        lines: list[Any] = []
        with contextlib.suppress(ValueError, RecursionError):
            for line in whole.splitlines():
                lines.append(json.loads(line))
        if not lines or lines[0] != {"mark": mark}:
            return False
        try:
            for line in lines[1:]:
                if line.get("ready"):
                    self.ready = True
                else:
                    self.done[int(line["block"])] = [float(value) for value in line["sums"]]
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
            self.done, self.ready = {}, False  # not a journal of ours: merge from the start
            return False
        os.ftruncate(self._handle, len(whole))
        os.lseek(self._handle, 0, os.SEEK_END)
        return True
