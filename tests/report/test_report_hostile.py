"""Nothing that comes from a dataset, a configuration or a log is ever run or rendered as markup."""

from __future__ import annotations

import json

import pytest
import yaml
from parsing import Page
from synthetic import NAMES, make_run

from merit.report.build import build_report
from merit.report.page import inline_json, plotly_text, prose, visible

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "{{ 7 * 7 }}{% raw %}",
    "%{customdata[0]} `tick` &lt;b&gt;",
    "\"'><svg onload=alert(1)>",
    "--accent",
    "2024-01-01",
    "</style><style>*{display:none}",
    "= HYPERLINK(1)",
    "x" * 200,
    "]]><!--",
)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("hostile") / "<b>run</b>&amp;"
    run = make_run(root, names=HOSTILE, text="</pre><script>alert(2)</script>\x1b[31m\u202e")
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    config["model"]["path"] = "</dd><script>alert(3)</script>"
    config["versions"]["torch"] = "<script>alert(4)</script>"
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    with run.events.open("a", encoding="utf-8") as handle:
        event = {"event": "failed", "stage": "<script>alert(5)</script>", "error": "<script>alert(6)</script>"}
        handle.write("\n" + json.dumps(event) + "\n")
    return build_report(run.root).read_text(encoding="utf-8")


def test_the_page_has_the_same_elements_as_a_harmless_one(hostile_page: str, page: str) -> None:
    allowed = {element.tag for element in Page(page).elements}
    found = {element.tag for element in Page(hostile_page).elements}
    assert found <= allowed
    assert not {"img", "svg", "iframe", "object"} & found


def test_no_script_but_ours(hostile_page: str) -> None:
    scripts = Page(hostile_page).all("script")
    kinds = [script.attributes.get("type") for script in scripts]
    assert kinds.count(None) == 1
    assert kinds.count("application/octet-stream") == 1
    assert set(kinds) == {None, "application/octet-stream", "application/json"}
    assert "alert(" not in next(script.text for script in scripts if "type" not in script.attributes)


def test_no_event_handlers_and_no_javascript_links(hostile_page: str) -> None:
    for element in Page(hostile_page).elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        assert not (element.attributes.get("href") or "").startswith("javascript")


def test_names_are_shown_as_they_are(hostile_page: str) -> None:
    cells = {element.text for element in Page(hostile_page).all("th")}
    for name in HOSTILE:
        assert name in cells


def test_plotly_gets_escaped_text(hostile_page: str) -> None:
    specs = [e.text for e in Page(hostile_page).all("script") if e.attributes.get("type") == "application/json"]
    texts = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            list(map(collect, value.values()))
        elif isinstance(value, list):
            list(map(collect, value))
        elif isinstance(value, str):
            texts.append(value)

    # What the search holds never reaches plotly: the page shows it as text.
    collect([json.loads(spec) | {"search": None} for spec in specs])
    assert any("&lt;img" in text for text in texts)
    assert not [text for text in texts if "<img" in text or "<script" in text or "<a " in text or "<svg" in text]
    # A dataset may be called like one of the page's colours: it must stay a name.
    assert any("\u200b--accent" in text for text in texts)


def test_control_characters_are_spelled_out(hostile_page: str) -> None:
    assert "\\x1b[31m\\u202e" in hostile_page


def test_helpers() -> None:
    assert plotly_text("a<b>&\n%{x}") == "a&lt;b&gt;&amp; %\u200b{x}"
    assert plotly_text("--line") == "\u200b--line"
    assert "<" not in inline_json(["</script>", "<!--", "\u2028"])
    assert json.loads(inline_json({"a": "</script>&\ud800"})) == {"a": "</script>&\ud800"}
    assert prose("`<b>` & `x`") == "<code>&lt;b&gt;</code> &amp; <code>x</code>"
    assert visible("tab\tnew\nline\x07\ud800") == "tab\tnew\nline\\x07\\ud800"


def test_the_harmless_names_are_harmless() -> None:
    assert [plotly_text(name) for name in NAMES] == list(NAMES)
