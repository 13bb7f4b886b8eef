"""docs/configuration.md says what the schema says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from merit.config import RunConfig, load_config

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current() -> None:
    command = [sys.executable, str(DOCS / "generate_configuration.py")]
    printed = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == printed, "run: python docs/generate_configuration.py > docs/configuration.md"


def test_every_field_is_described() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > len(RunConfig.model_fields) * 3
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(.*?)```", page, flags=re.S)
    assert found
    file = tmp_path / "merit.yaml"
    file.write_text(found[1], encoding="utf-8")
    assert list(load_config(file).mixture) == list(yaml.safe_load(found[1])["mixture"])
