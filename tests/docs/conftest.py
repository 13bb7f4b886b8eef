"""A reader for each page; one finished run, made when the first page asks for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Block, Page
from reader import Reader, make_data, make_environment

# What `merit init` proposes, cut down: one baseline, few answers, the last checks in seconds.
_RUN = """
merit init my-data
sed -i -e 's/^  random: random$//' my-data/merit.yaml
echo 'evaluate: {held_out: 4, generate: 1, max_new_tokens: 4}' >> my-data/merit.yaml
merit run my-data/merit.yaml
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, str]:
    return make_environment(tmp_path_factory.mktemp("reader"), tiny_model)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Callable[[], Path]:
    """A folder with `my-data/` and its run `my-data/runs/merit/`; made at the first call."""
    folder = tmp_path_factory.mktemp("finished")

    def make() -> Path:
        if not (folder / "my-data").exists():
            reader = Reader(folder, environment)
            make_data(reader)
            reader.shell(Block("conftest.py", 0, "bash", _RUN, None, None), _RUN)
        assert (folder / "my-data/runs/merit/report.html").exists(), (
            "the run did not come to its end; see the first failure"
        )
        return folder

    return make


@pytest.fixture
def reader_of(tmp_path: Path, environment: dict[str, str], finished: Callable[[], Path]) -> Callable[[Page], Reader]:
    """A page → a reader who has what the page starts with."""

    def make(page: Page) -> Reader:
        reader = Reader(tmp_path / "reader", environment)
        if page.needs_run:
            shutil.copytree(finished(), reader.folder, symlinks=True)
            # A run knows its data by absolute paths: this copy's are its own.
            config = reader.folder / "my-data/runs/merit/config.yaml"
            text = config.read_text(encoding="utf-8")
            config.write_text(text.replace(str(finished()), str(reader.folder)), encoding="utf-8")
        else:
            reader.folder.mkdir()
            if page.path.name != "tutorial.md":
                make_data(reader)
        return reader

    return make
