"""The answers at the top of docs/study.md quote the committed results, figure by figure."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from merit.study.compare import Interval
from merit.study.results import Results

ROOT = Path(__file__).parents[2]
NUMBER = r"([+−]?\d+\.\d{3})"


def results() -> list[Results]:
    return [Results.load(path) for path in sorted((ROOT / "studies").glob("*/results*/results.json"))]


def shown(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def signed(text: str) -> str:
    return text if text[0] in "+−" else f"+{text}"


def test_the_answers_quote_the_tables():
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    answers = " ".join(page.partition("## What follows")[0].split())
    compared = [item for found in results() for item in found.comparisons]
    there = {(shown(c.difference), shown(c.low), shown(c.high)) for c in compared}
    there |= {(shown(-c.difference), shown(-c.high), shown(-c.low)) for c in compared}  # "better by"
    quoted = {tuple(map(signed, item)) for item in re.findall(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", answers)}
    assert len(quoted) > 30
    assert not quoted - there
    rows = [row for found in results() for row in found.rows]
    losses: list[Interval] = [*chain.from_iterable(row.faces.values() for row in rows), *(row.average for row in rows)]
    means = {(f"{item.value:.3f}", f"{(item.high - item.low) / 2:.3f}") for item in losses}
    quoted = set(re.findall(rf"{NUMBER} ± {NUMBER}", answers))
    assert len(quoted) > 10
    assert not quoted - means


def test_each_answer_has_its_marks():
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for number in (1, 2, 3, 4):
        start, end = page.index(f"<!-- ANSWER {number},"), page.index(f"<!-- END OF ANSWER {number} -->")
        assert page.rindex("## ", 0, start) > page.rfind("<!-- END OF ANSWER", 0, start)
        assert 0 < end - start < 1200
