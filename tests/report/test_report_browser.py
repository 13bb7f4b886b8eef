"""The page in a real browser: no console errors, every figure drawn, every button works, nothing wider than a phone."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run
from test_report_hostile import HOSTILE

from merit.report.build import build_report
from merit.report.compare import build_comparison
from merit.run.layout import RunDir

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--allow-file-access-from-files",
    "--virtual-time-budget=60000",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
)

# axe-core travels in this package; nothing of it is imported, only the script is used.
_AXE = importlib.util.find_spec("axe_playwright_python")
AXE = Path(str(_AXE.origin)).with_name("axe.min.js") if _AXE else None

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not opened")


def use_page(report: Path, profile: Path, *, width: int, axe: bool = False) -> dict[str, Any]:
    """Opens `report` in a frame `width` wide, presses every button, and returns what the harness saw."""
    harness = Path(__file__).with_name("harness.html").as_uri()
    address = f"{harness}#{report.as_uri()}|{width}|{AXE.as_uri() if AXE and axe else ''}"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    found = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, flags=re.S)
    assert found, result.stdout[:2000]
    assert found[1], "the page never finished"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


def check(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
    assert seen["figures"] == seen["drawn"] > 0
    assert seen["saved"] == seen["saves"]
    assert seen["pressed"] == seen["views"]
    assert seen["themed"]
    assert seen["overflow"] == 0
    assert seen["links"] == seen["foreign"] == 0


@pytest.fixture(scope="module", params=[1200, 390])
def finished(request: pytest.FixtureRequest, finished_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was seen of the finished run on a desk and on a phone, axe-core included where it is installed."""
    seen = use_page(finished_run.report, tmp_path_factory.mktemp("profile"), width=request.param, axe=True)
    return {**seen, "width": request.param}


def test_a_finished_run(finished: dict[str, Any]) -> None:
    seen = finished
    check(seen)
    assert seen["figures"] >= 12
    assert seen["views"] == 2
    assert len(seen["looked"]) == 1
    assert "group 0. Lowest cosines: " in seen["looked"][0]
    if seen["width"] == 1200:  # a phone scrolls it
        assert seen["cut"] == 0


@pytest.mark.skipif(AXE is None, reason="no axe-core here: pip install --no-deps axe-playwright-python")
def test_axe_finds_nothing_in_either_theme(finished: dict[str, Any]) -> None:
    assert finished["audits"] == []
    assert finished["rules"] >= 40  # twenty a theme: it did look


def test_a_comparison_of_runs(finished_run: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", names=HOSTILE)
    page = tmp_path / "compare.html"
    build_comparison([make_run(tmp_path / "run").root, finished_run.root, other.root], page)
    seen = use_page(page, tmp_path / "profile", width=390, axe=True)
    check(seen)
    assert seen["audits"] == []


def test_hostile_names(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=HOSTILE, text="<script>alert(1)</script>")
    check(use_page(build_report(run.root), tmp_path / "profile", width=1200))


def test_a_run_until_its_split(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="split")
    check(use_page(build_report(run.root), tmp_path / "profile", width=1200))
