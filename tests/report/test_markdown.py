"""Text from outside has no power over a Markdown page."""

from __future__ import annotations

from merit.base.words import code_cell, plain


def test_what_markdown_and_html_know_is_escaped() -> None:
    assert plain("a_b | *c* `d` <e> [f] \\") == r"a\_b \| \*c\* \`d\` \<e\> \[f\] \\"
    assert plain("two\nlines\x1b") == r"two\\nlines\\x1b"


def test_code_in_a_table_stays_one_cell() -> None:
    """In code only the pipe needs escaping, and a backtick would end it."""
    assert code_cell("a|b<c>_`d") == r"`a\|b<c>_'d`"
