"""Python imports this file at its start where its folder is on PYTHONPATH: a store that counts.

`counted://PATH` is the folder PATH, slow to give θ0, so that two jobs want the same file at once. A line of the file
$COUNTED is what one copy moved: into it (`put`) or out of it (`get`), bytes, and the name.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class CountedFileSystem(LocalFileSystem):
    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("counted://"))

    def put_file(self, source: str, target: str, *args: Any, **kwargs: Any) -> Any:
        super().put_file(source, target, *args, **kwargs)
        self._count("put", source, target)

    def get_file(self, source: str, target: str, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2 if "/theta0/" in source else 0)
        super().get_file(source, target, *args, **kwargs)
        self._count("get", target, source)

    def _count(self, what: str, here: str, name: str) -> None:
        with Path(os.environ["COUNTED"]).open("a") as log:
            log.write(f"{what} {Path(here).stat().st_size} {name}\n")


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
