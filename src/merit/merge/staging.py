"""Output folders while they are written: hidden siblings, renamed into place once all of them are whole."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import disk_errors, fsync_dir
from merit.merge.journal import NAME as JOURNAL
from merit.merge.journal import Journal
from merit.merge.plan import Output


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
