"""Figures as files: the same numbers as on the page, nothing that a spreadsheet runs, pictures where a browser is."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from parsing import Page
from synthetic import make_run

from merit.base.errors import InputError
from merit.report.build import chapters
from merit.report.drawing import DataTable
from merit.report.evidence import read_evidence
from merit.report.export import export_figures, figures_of, painted, palette, to_csv
from merit.run.layout import RunDir

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
KALEIDO = importlib.util.find_spec("kaleido")


def test_every_figure_of_the_page_is_found(finished_run: RunDir, page: str) -> None:
    found = figures_of(chapters(read_evidence(finished_run.root)))
    shown = [element.attributes["id"] for element in Page(page).all("figure")]
    assert sorted(f"fig-{figure.id}" for figure in found) == sorted(str(name) for name in shown)
    assert len({figure.id for figure in found}) == len(found)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_name_of_a_colour_is_left(finished_run: RunDir, theme: str) -> None:
    for figure in figures_of(chapters(read_evidence(finished_run.root))):
        spec = painted(figure, palette(theme))
        assert not re.search(r"'--[a-z]", str(spec)), figure.id
        assert spec["layout"]["title"]["text"]


def test_csv_is_what_a_spreadsheet_reads_and_never_runs() -> None:
    table = DataTable(
        ["name", "value"], [["=HYPERLINK(1)", "−0.5"], ['a "b", c', "+1.2 ± 0.1"], ["@x", "12.5%"], ["-", "–"]]
    )
    rows = list(csv.reader(to_csv(table).splitlines()))
    assert rows == [
        ["name", "value"], ["'=HYPERLINK(1)", "-0.5"], ['a "b", c', "+1.2 ± 0.1"], ["'@x", "12.5%"], ["'-", "–"],
    ]  # fmt: skip


def test_without_kaleido_numbers_are_written_and_it_is_said(
    tmp_path: Path, finished_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    found = export_figures(finished_run.root, tmp_path / "figures")
    assert {path.suffix for path in found.files} == {".csv"}
    assert len(found.files) >= 20
    assert found.without_pictures is not None
    assert "pip install" in found.without_pictures


@pytest.mark.skipif(KALEIDO is None, reason="no kaleido: pip install 'merit-tuning[figures]'")
def test_without_a_browser_numbers_are_written_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from choreographer.browsers.chromium import Chromium

    run = make_run(tmp_path / "run", until="conflict")
    for name, said in (("none", "there is none here"), ("chromium", "does not start")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if name == "chromium" else str(folder))
        if Chromium.find_browser(skip_local=False) not in (None, str(folder / name)):
            pytest.skip("this machine's browser is found without PATH")
        found = export_figures(run.root, folder / "figures")
        assert {path.suffix for path in found.files} == {".csv"}
        assert said in str(found.without_pictures)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: no picture is drawn")
@pytest.mark.skipif(KALEIDO is None, reason="no kaleido: pip install 'merit-tuning[figures]'")
def test_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="conflict")
    found = export_figures(run.root, tmp_path / "figures", theme="dark")
    assert found.without_pictures is None
    names = {path.stem for path in found.files if path.suffix == ".csv"}
    pictures = [path for path in found.files if path.suffix == ".png"]
    assert {path.stem for path in pictures} == names >= {"similarity", "plane", "eigenvalues", "reliability"}
    for path in pictures:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20]) == 1920  # pixels: 960 twice over


def test_a_folder_that_cannot_be_made(tmp_path: Path, finished_run: RunDir) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot write here"):
        export_figures(finished_run.root, tmp_path / "taken")
