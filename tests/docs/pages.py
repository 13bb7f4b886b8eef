"""The documentation's pages as lists of fenced blocks.

What the tests read in a page:
- a `bash` block is run whole; of a `console` block the lines after `$ ` are, and what is shown below a command must be
  part of what it prints (`…` stands for anything);
- a `python` block is run after the page's earlier ones, in their names;
- a block with `title="FILE"` is that file, written before the next block runs;
- `<!-- not run: REASON -->` right above a block leaves it out;
- `<!-- starts with: a finished run -->` gives the page one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^(?P=indent)```\s*?$",
    flags=re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    title: str | None
    reason: str | None  # why it is not run

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """One Markdown file below docs/, or the README."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def needs_run(self) -> bool:
        return "<!-- starts with: a finished run -->" in self.text

    @cached_property
    def blocks(self) -> list[Block]:
        found = []
        for match in _FENCE.finditer(self.text):
            title = re.search(r'title="([^"]+)"', match["rest"])
            line = self.text.count("\n", 0, match.start("language")) + 1
            found.append(
                Block(self.name, line, match["language"], match["text"], title[1] if title else None, match["reason"])
            )
        return found

    def runnable(self) -> list[Block]:
        """The blocks that are run or written, in order."""
        return [b for b in self.blocks if b.reason is None and (b.title or b.language in ("bash", "console", "python"))]


def all_pages() -> list[Page]:
    """README and every page of the site that is kept in docs/."""
    return [Page(path) for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))]


def session(text: str) -> list[tuple[str, str]]:
    """A console block → (command, what is shown of its output)."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            command, shown = found[-1]
            found[-1] = (command, f"{shown}{line}\n")
        else:
            raise ValueError(f"a console block begins with a command after `$ `, not {line!r}")
    return found


def is_shown(shown: str, printed: str) -> bool:
    """Whether `shown` is in `printed`, white space alike, `…` standing for anything."""
    parts = [re.escape(" ".join(part.split())) for part in shown.split("…")]
    return re.search(".*?".join(parts), " ".join(printed.split())) is not None
