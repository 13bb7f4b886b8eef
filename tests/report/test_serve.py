"""The served report: on this machine alone, drawn anew with the run's news, ended by Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from synthetic import make_run
from test_report_browser import BROWSER, FLAGS

from merit.base.errors import InputError
from merit.report.serve import HOST, ReportServer, run_state


@contextlib.contextmanager
def serving(server: ReportServer) -> Iterator[ReportServer]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with server:
            yield server
            server.shutdown()
    finally:
        thread.join(timeout=10)


def get(server: ReportServer, path: str, host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection(HOST, server.server_port, timeout=60)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read().decode()


def test_the_page_and_its_state(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="split")
    with serving(ReportServer(run.root, 0)) as server:
        status, headers, page = get(server, "/")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "no branch of the main method is trained to its end yet" in page
        state = json.loads(get(server, "/state")[2])["state"]
        assert f'<meta name="merit-state" content="{state}">' in page
        run.method().branch(0).log.parent.mkdir(parents=True)
        run.method().branch(0).log.write_text('{"step": 1, "loss": 3.0}\n')
        assert json.loads(get(server, "/state")[2])["state"] != state
        assert "Training loss of each branch" in get(server, "/")[2]


def test_nothing_else_is_served_and_nobody_else_is_answered(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="mixture")
    with serving(ReportServer(run.root, 0)) as server:
        assert server.server_address[0] == HOST
        assert get(server, "/", host="evil.example")[0] == 403
        assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200
        for path in ("/config.yaml", "/../config.yaml", "/?x", "/state/"):
            assert get(server, path)[0] == 404


def test_what_is_of_no_report_is_no_news(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = run_state(run.root)
    (run.method().branch(0).checkpoint / "config.json").write_text("{}")
    run.method().branch(0).progress.write_text("{}")
    (run.root / "report.html").write_text("")
    assert run_state(run.root) == before
    run.method("joint").merge_record.unlink()
    assert run_state(run.root) != before


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="mixture")
    with serving(ReportServer(run.root, 0)) as server, pytest.raises(InputError, match="cannot listen on port"):
        ReportServer(run.root, server.server_port)


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    config = tmp_path / "merit.yaml"
    config.write_text("model: nowhere\nsplit: {axes: 1}\nmixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}\n")
    command = [sys.executable, "-m", "merit", "report", str(config), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found
        connection = HTTPConnection(HOST, int(found[1]), timeout=60)
        connection.request("GET", "/")
        assert "Nothing has begun yet." in connection.getresponse().read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert not (tmp_path / "runs").exists()


class _Growing(ReportServer):
    """A run that goes on while it is watched: its branches are trained at the second question. The reader has scrolled
    to the split, and opened the conflict's numbers."""

    script = """<script>
      addEventListener("load", async () => {
        while (document.documentElement.dataset.figures !== "drawn") await new Promise((done) => setTimeout(done, 100));
        document.querySelector("#fig-similarity details").open = true;
        document.querySelector("#fig-similarity .search input").value = "gcd";
        document.getElementById("split").scrollIntoView({ behavior: "instant" });
        const plot = document.querySelector("#fig-similarity .plot");
        const top = document.getElementById("split").getBoundingClientRect().top;
        while (!document.querySelector("#fig-curves[data-drawn]")) await new Promise((done) => setTimeout(done, 100));
        const split = document.getElementById("split").getBoundingClientRect().top;
        document.body.dataset.seen = JSON.stringify({
          moved: Math.abs(split - top),
          kept: plot === document.querySelector("#fig-similarity .plot") && plot.querySelector(".main-svg") !== null,
          open: document.querySelector("#fig-similarity details").open,
          typed: document.querySelector("#fig-similarity .search input").value,
        });
      });
    </script>"""

    def __init__(self, root: Path) -> None:
        super().__init__(root, 0)
        self.asked = 0

    def page(self) -> bytes:
        self.asked += 1
        if self.asked == 1:
            threading.Timer(1.0, lambda: make_run(self.root, until="train")).start()
        return super().page().replace(b"</body>", self.script.encode() + b"</body>")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not opened")
def test_a_page_follows_its_run_and_stays_where_the_reader_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="split")
    with serving(_Growing(run.root)) as server:
        flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"]
        command = [str(BROWSER), *flags, server.url]
        result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in result.stderr
    found = re.search(r'data-seen="([^"]*)"', result.stdout)
    assert found, "the page never showed the branches"
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["moved"] < 2
    assert seen["kept"], "a chapter without news was drawn again"
    assert (seen["open"], seen["typed"]) == (True, "gcd")
