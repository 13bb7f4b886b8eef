"""What the site needs besides its pages: files from outside docs/, formulas as MathML, notebooks as pages."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Shown as pages, though they live elsewhere; links to them from docs/ begin with `../`.
OUTSIDE = ("benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
STUDIES = "studies"
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_files(files: Files, config: Any) -> Files:
    """Adds what lies outside docs/."""
    found = [ROOT / name for name in OUTSIDE if (ROOT / name).is_file()]
    found += sorted(path for path in (ROOT / STUDIES).rglob("*") if path.suffix in (".md", ".svg", ".yaml"))
    for path in found:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_page(path)))
    return files


def as_page(notebook: Path) -> str:
    """A notebook's text and code, and a link to the file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(c["source"]) if c["cell_type"] == "markdown" else _code("".join(c["source"])) for c in cells]
    return "\n\n".join([parts[0], f"[Download this notebook]({notebook.name})", *parts[1:]])


def _code(source: str) -> str:
    return f"```python\n{source}\n```"


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Points links at where files are in the site: docs/ is its root there, and a folder of the repository outside."""
    if page.file.abs_src_path is None:  # a notebook: it stands where its file does
        return markdown
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    home = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        uri = target.removeprefix("docs/")
        return posixpath.relpath(uri, home or ".") if files.get_file_from_path(uri) else match[1]

    return _LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas are drawn by the browser itself, without a script from elsewhere."""

    def drawn(match: re.Match[str]) -> str:
        source = match[3].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        block = match[2] == "["
        mathml = convert(source, display="block" if block else "inline")
        return f'<div class="formula">{mathml}</div>' if block else mathml

    return _FORMULA.sub(drawn, html)
