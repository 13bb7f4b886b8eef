"""The page as a whole: self-contained, small, in order, accessible, and there for runs that are not finished."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from parsing import Page
from synthetic import STAGES, make_run

from merit.base.errors import InputError
from merit.report.build import build_report
from merit.run.layout import RunDir

CHAPTERS = ["asked", "conflict", "split", "training", "gains", "cost", "reproduce"]
WHOLE = ["asked", "conflict", "split", "gate", "training", "diagnostics", "gains", "cost", "reproduce"]
STATES = {
    "mixture": "The run has begun.",
    "conflict": "the mixture has not been split yet",
    "split": "no branch of the main method is trained to its end yet",
    "train": "nothing has been evaluated yet",
    "merge": "nothing has been evaluated yet",
    "evaluate": "better than joint training",
}


def test_one_file_of_at_most_six_megabytes_that_loads_nothing(finished_run: RunDir, page: str) -> None:
    assert finished_run.report.stat().st_size <= 6_000_000
    parsed = Page(page)
    for element in parsed.elements:
        for attribute in ("src", "href", "action", "poster", "srcset", "data"):
            value = element.attributes.get(attribute) or "#"
            assert value.startswith("#") or value == "data:,", (element.tag, value)
    styles = "".join(element.text for element in parsed.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_its_policy_lets_nothing_in_or_out(page: str) -> None:
    policy = next(e.attributes["content"] for e in Page(page).all("meta") if "http-equiv" in e.attributes)
    assert str(policy).startswith("default-src 'none'; ")
    assert "connect-src 'none'" in str(policy)
    assert "http" not in str(policy)


def test_plotly_is_inlined_once(page: str) -> None:
    assert page.count('id="plotly-bundle"') == 1


def test_the_story_is_told_in_order(page: str) -> None:
    sections = [element.attributes["id"] for element in Page(page).all("section")]
    assert sections == WHOLE


def test_headings_are_nested(page: str) -> None:
    levels = [int(element.tag[1]) for element in Page(page).elements if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_figure_has_alt_text_a_caption_and_its_numbers(page: str) -> None:
    parsed = Page(page)
    figures = parsed.all("figure")
    plots = [element for element in parsed.elements if element.attributes.get("role") == "img"]
    assert len(figures) == len(plots) == len(parsed.all("figcaption")) >= 12
    assert all(len(plot.attributes["aria-label"] or "") > 40 for plot in plots)
    tables = parsed.all("table")
    assert len(tables) >= len(figures)
    assert len(parsed.all("caption")) == len(tables)


def test_ids_are_unique(page: str) -> None:
    ids = [element.attributes["id"] for element in Page(page).elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_colours_of_figures_are_defined_in_both_themes(page: str) -> None:
    used = set(re.findall(r'"(--[a-z0-9-]+)"', page))
    assert used
    light, dark, again = re.findall(r"\{\s*(color-scheme: .*?)\}", page, flags=re.S)
    assert dark == again
    for palette in (light, dark):
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", palette))


def test_inline_json_is_json(page: str) -> None:
    specs = [e.text for e in Page(page).all("script") if e.attributes.get("type") == "application/json"]
    assert all({"data", "layout", "narrow", "views"} <= set(json.loads(spec)) for spec in specs)


@pytest.mark.parametrize("until", STAGES)
def test_a_run_that_is_not_finished_has_a_report(tmp_path: Path, until: str) -> None:
    run = make_run(tmp_path / "run", until=until)
    page = build_report(run.root).read_text(encoding="utf-8")
    assert STATES[until] in page
    assert [e.attributes["id"] for e in Page(page).all("section")] == CHAPTERS


def test_branches_still_in_training_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="train")
    run.method().branch(2).done.unlink()
    page = build_report(run.root).read_text(encoding="utf-8")
    assert "3 of 4 branches have been trained; nothing has been evaluated yet." in page


def test_an_empty_directory_has_a_report(tmp_path: Path) -> None:
    assert "The run has begun." in build_report(tmp_path).read_text(encoding="utf-8")


def test_damaged_files_are_left_out_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.conflict.write_text('{"names": [', encoding="utf-8")
    run.method("joint").branch(0).done.write_text("[]", encoding="utf-8")
    run.similarity.write_bytes(b"\x93NUMPY torn")
    run.config.write_text("model: [", encoding="utf-8")
    text = build_report(run.root).read_text(encoding="utf-8")
    for name in (
        "conflict/conflict.json",
        "baselines/joint/branches/00/DONE",
        "conflict/similarity.npy",
        "config.yaml",
    ):
        assert f"<code>{name}</code> is left out" in text


def test_similarity_of_another_size_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    np.save(run.similarity, np.eye(3))
    assert "its shape is (3, 3), not (12, 12)" in build_report(run.root).read_text(encoding="utf-8")


def test_many_datasets_still_fit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=[f"task_{i:03d}_{'long' * 8}" for i in range(176)], axes=3)
    assert build_report(run.root).stat().st_size <= 6_000_000


def test_a_report_is_the_same_every_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert build_report(run.root).read_bytes() == build_report(run.root).read_bytes()


def test_no_report_of_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        build_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
