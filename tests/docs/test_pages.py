"""What holds in every page without running it: links, configurations, pictures, and few exceptions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from pages import DOCS, ROOT, Block, Page, all_pages, is_shown, session

import merit
from merit.cli.main import app
from merit.config import RunConfig
from merit.config.study import StudyConfig

PAGES = all_pages()
# Blocks that cannot run here, over all pages: a new one needs a reason, and this number.
NOT_RUN = 12
REASONS = ("needs ", "installs ", "minutes: ", "a sketch: ")


def _ids(block: Block) -> str:
    return block.place


def test_what_is_not_run_has_a_reason_and_is_rare() -> None:
    left_out = [block for page in PAGES for block in page.blocks if block.reason]
    assert all(block.reason and block.reason.startswith(REASONS) for block in left_out)
    assert len(left_out) == NOT_RUN, "\n".join(f"{b.place}: {b.reason}" for b in left_out)
    run = [block for page in PAGES for block in page.runnable()]
    assert len(run) > 3 * len(left_out)


def test_every_marker_stands_above_a_block() -> None:
    markers = sum(page.text.count("<!-- not run:") for page in PAGES)
    assert markers == sum(block.reason is not None for page in PAGES for block in page.blocks)


def test_every_command_of_merit_stands_in_a_block_that_is_known() -> None:
    """A fence without a language would escape the tests."""
    for page in PAGES:
        for block in page.blocks:
            if block.language not in ("bash", "console"):
                assert not re.search(r"^\$? ?(merit|pip|make) [a-z]", block.text, flags=re.M), block.place


def _mentioned(page: Page) -> list[list[str]]:
    """The words of each `merit …`, in the text and in the blocks, those that are not run included."""
    found = re.findall(r"`(merit [^`]+)`", re.sub(r"```.*?```", "", page.text, flags=re.S))
    for block in page.blocks:
        if block.language in ("bash", "console"):
            found += re.findall(r"^(?:\$ )?(merit [a-z].*)$", block.text, flags=re.M)
    return [command.split("#")[0].split() for command in found]


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md", "docs"])
def test_every_command_that_is_mentioned_exists_with_its_options(name: str) -> None:
    pages = [Page(path) for path in (sorted(DOCS.rglob("*.md")) if name == "docs" else [ROOT / name])]
    program = typer.main.get_command(app)
    count = 0
    for page in pages:
        for _, command, *words in _mentioned(page):
            if not command.startswith("-"):
                found = program.get_command(None, command)  # type: ignore[attr-defined]
                assert found is not None, f"{page.name}: merit {command}"
                known = {option for item in found.params for option in (*item.opts, *item.secondary_opts)} | {"--help"}
                given = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
                assert given <= known, f"{page.name}: merit {command} {given - known}"
                count += 1
    assert count > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.text, flags=re.S)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.path.parent / name).resolve() if name else page.path
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), f"{page.name}: {target}"


def _anchors(file: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_lines_are_short_enough() -> None:
    for page in PAGES:
        if page.path.parent != DOCS:
            continue
        for number, line in enumerate(page.text.splitlines(), 1):
            assert len(line) <= 120 or line.startswith(("|", " ", "![", "$$")), f"{page.name}:{number}"


# A file with another name than a configuration's is something else, and its page's commands use it.
YAML = [
    block
    for page in PAGES
    for block in page.blocks
    if block.language == "yaml" and (block.title or "merit.yaml").endswith("merit.yaml")
]


@pytest.mark.parametrize("block", YAML, ids=_ids)
def test_every_yaml_block_is_a_configuration_or_a_part_of_one(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if "fsdp_config" in document:  # accelerate's own; tests/train/test_fsdp2.py trains with it
            continue
        if {"methods", "budgets"} & document.keys():
            StudyConfig.model_validate(document)
            continue
        four = {name: {"path": f"{name}.jsonl"} for name in "abcd"}
        whole = {"model": "m", "mixture": four} | document
        RunConfig.model_validate(whole)


def test_the_python_page_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: ([\w.]+)$", page, flags=re.M)
    assert {name.rpartition(".")[2] for name in named} >= set(merit.__all__)
    homes = {f"{home}.{name}" for name, home in merit._HOME.items()}
    assert homes <= set(named) | {f"merit.{name}" for name in merit.__all__}


def test_the_pictures_are_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DOCS / "draw_pictures.py"), str(tmp_path)], check=True)
    drawn = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("*.svg")}
    kept = {file.name: file.read_text(encoding="utf-8") for file in (DOCS / "pictures").glob("*.svg")}
    assert drawn.keys() == kept.keys()
    for name, text in drawn.items():
        assert _without_digits(text) == _without_digits(kept[name]), f"run: python docs/draw_pictures.py ({name})"


def _without_digits(text: str) -> str:
    """Last digits may differ between processors."""
    return re.sub(r"\d+(\.\d+)?", "0", text)


def test_a_shown_output_is_looked_for() -> None:
    assert session("$ a\nb\n$ c\n") == [("a", "b\n"), ("c", "")]
    assert is_shown("wrote … done", "x wrote\n 3 files,  done")
    assert not is_shown("wrote … done", "done wrote")
    with pytest.raises(ValueError, match="begins with a command"):
        session("merit run\n")
