"""Images of the web, from a server of this machine: what is taken, kept and refused."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig
from merit.data import image
from merit.data.check import check_mixture
from merit.data.image import BadImage, ImageRef, fetch
from merit.data.reading import DatasetReader
from merit.models.loading import load_tokenizer
from merit.models.source import ModelFolder
from pictures import png
from vision_models import write_tiny_vlm


class Server(BaseHTTPRequestHandler):
    """/good.png, /page, /large, /slow, /drip, /cut, /busy-then-good, /ring, /to?ADDRESS; all else is missing."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        with contextlib.suppress(ConnectionError):  # a client that has had enough hangs up
            self._answer()

    def _answer(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        elif self.path == "/ring":
            self.send_response(302)
            self.send_header("Location", "/ring")
            self.end_headers()
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(png(8, 8)[:50])
        elif self.path == "/good.png" or (self.path == "/busy-then-good" and self.asked.count(self.path) > 1):
            self._send(png(8, 8))
        elif self.path == "/busy-then-good":
            self.send_error(503)
        elif self.path == "/page":
            self._send(b"<html>come back later</html>")
        elif self.path == "/large":
            self._send(png(64, 64))
        elif self.path == "/slow":
            time.sleep(1)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self.send_error(404)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch, tmp_path) -> Iterator[str]:
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(image, "_PAUSE", 0)
    Server.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    image._opener.cache_clear()  # it remembers the environment's proxies
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ref(url: str) -> ImageRef:
    return ImageRef(url, "image", url=url)


def test_an_image_is_fetched_once(web):
    assert ref(f"{web}/good.png").read() == png(8, 8) == ref(f"{web}/good.png").read()
    assert ref(f"{web}/to?/good.png").read() == png(8, 8)
    assert Server.asked.count("/good.png") == 2  # the second is that of the redirection


def test_a_busy_server_is_asked_again(web):
    assert ref(f"{web}/busy-then-good").read() == png(8, 8)


def test_what_is_no_image_is_not_kept(web):
    for _ in range(2):
        assert ref(f"{web}/page").read().startswith(b"<html>")
    assert Server.asked == ["/page", "/page"]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:,x"])
def test_a_redirection_leaves_the_web_nowhere(web, target):
    with pytest.raises(BadImage, match="cannot be fetched"):
        ref(f"{web}/to?{target}").read()
    with pytest.raises(OSError, match="unknown url type"):
        fetch(target, 100)


def test_a_ring_of_redirections_ends(web):
    with pytest.raises(BadImage, match="cannot be fetched"):
        ref(f"{web}/ring").read()


def test_limits(web, monkeypatch):
    with pytest.raises(OSError, match="timed out"):
        fetch(f"{web}/slow", 100, silence=0.2)
    with pytest.raises(OSError, match="not whole after"):
        fetch(f"{web}/drip", 100, whole=0.3)
    assert len(fetch(f"{web}/large", 100)) == 101
    monkeypatch.setattr(image, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(BadImage, match="is larger than 100 bytes"):
        ref(f"{web}/large").read()
    with pytest.raises(BadImage, match="cut short after 50 bytes"):
        ref(f"{web}/cut").read()
    with pytest.raises(BadImage, match="404"):
        ref(f"{web}/none").read()
    with pytest.raises(BadImage, match="refused"):
        ref("http://127.0.0.1:9/a.png").read()


def test_check_names_what_the_web_does_not_give(web, tmp_path):
    names = ["good.png", "page", "none", "to?file:///etc/hostname"]
    rows = [{"image": f"{web}/{name}", "question": f"{name}?", "answer": "yes"} for name in names]
    rows += [{"question": f"plain {index}", "answer": "no"} for index in range(8)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = DatasetReader.open("d", DatasetConfig(path="d.jsonl"), tmp_path)
    assert sum("is on the web" in str(read.error) for read in refused.read()) == len(names)
    assert Server.asked == []
    tokenizer = load_tokenizer(ModelFolder(write_tiny_vlm("llava", tmp_path / "vlm"), "x", False))
    dataset = {"path": "d.jsonl", "image_urls": True}
    values = {"model": "x", "mixture": {"d": dataset}, "held_out_fraction": 0.3, "split": {"splitter": "single"}}
    report = check_mixture(RunConfig.model_validate(values), tmp_path, tokenizer)
    assert report.ok
    lines = [line for line in report.datasets[0].warnings if line.startswith("left out")]
    assert {int(line.split("d.jsonl:")[1].split(":")[0]) for line in lines} == {2, 3, 4}
    assert report.datasets[0].summary.images == 1
