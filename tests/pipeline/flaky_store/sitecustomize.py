"""Python imports this file at its start where its folder is on PYTHONPATH: a store that fails every third call.

`flaky://PATH` is the folder PATH. The first copy of a model's weights out of it is damaged on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

import merit.jobs.store

merit.jobs.store._FIRST_SECONDS = 0.01


class FlakyFileSystem(LocalFileSystem):
    protocol = "flaky"
    calls = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("flaky://"))

    def put_file(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().put_file(*args, **kwargs)

    def get_file(self, source: str, target: str, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        found = super().get_file(source, target, *args, **kwargs)
        damaged = Path(f"{source}.damaged-once")
        if "/branches/" in source and source.endswith("model.safetensors") and not damaged.exists():
            damaged.touch()
            Path(target).write_bytes(Path(target).read_bytes()[:-8] + bytes(8))
        return found

    def find(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().find(*args, **kwargs)

    def _fail(self) -> None:
        FlakyFileSystem.calls += 1
        if FlakyFileSystem.calls % 3 == 0:
            raise OSError("the network is down")


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
