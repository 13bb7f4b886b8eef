"""Every command and Python block of the documentation runs as written: the quick pages always, all of them with
MERIT_DOCS=all (`make docs-test`)."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from pages import Page, all_pages
from reader import Reader

# Pages that train nothing; together they take a few seconds.
QUICK = {"docs/theory.md", "docs/faq.md"}
PAGES = [page for page in all_pages() if page.runnable()]


def chosen() -> list[Page]:
    return [page for page in PAGES if page.name in QUICK or os.environ.get("MERIT_DOCS") == "all"]


@pytest.mark.parametrize("page", chosen(), ids=lambda page: page.name)
def test_the_page_runs_as_written(page: Page, reader_of: Callable[[Page], Reader]) -> None:
    reader_of(page).follow(page)


def test_the_quick_pages_are_pages() -> None:
    assert {page.name for page in PAGES} >= QUICK
