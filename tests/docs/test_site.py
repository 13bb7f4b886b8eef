"""The site builds strictly: every page in the navigation, every link and anchor good, every name of the API found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pages import DOCS, ROOT


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {file.relative_to(DOCS).with_suffix("").as_posix() for file in DOCS.glob("*.md")}
    built = {file.stem for file in (tmp_path / "site").glob("*.html")}
    assert pages <= built
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "Everything is checked before a byte is written" in api  # merge_checkpoints' own docstring
    theory = (tmp_path / "site" / "theory.html").read_text(encoding="utf-8")
    assert "<math" in theory
    assert "arithmatex" not in theory
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|rel="stylesheet" href)="(https?:[^"]+)', page.read_text(encoding="utf-8"))
        assert not fetched, page.name  # nothing comes from elsewhere
