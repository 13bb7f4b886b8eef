"""`merit report --serve`: the report of a run in progress, on this machine only, drawn anew when the run has news."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from merit.base.errors import InputError, MeritError
from merit.report.build import render_report
from merit.report.evidence import read_evidence

HOST = "127.0.0.1"
# Large, and of no report: weights, sketches, encoded examples, and what an engine keeps for itself.
_PASSED_OVER = ("checkpoint", "incoming", "training", "merged", "data", "gradients", "handover", ".merit")
_READ = (".json", ".jsonl", ".npy", ".yaml")
_IGNORED = ("progress.json", "job.json", "spec.json")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class ReportServer(ThreadingHTTPServer):
    """Answers `/` with the page and `/state` with a mark that changes when the run's files do."""

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self._drawing = threading.Lock()
        self._page: tuple[str, bytes] | None = None
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"cannot listen on port {port} ({error.strerror})", field="--port") from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> bytes:
        """The page of the run as it is now; drawn once a state, whoever asks."""
        with self._drawing:
            state = run_state(self.root)
            if self._page is None or self._page[0] != state:
                self._page = state, render_report(read_evidence(self.root), follow=state).encode()
            return self._page[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "merit", ""

    def do_GET(self) -> None:
        # A name that some other site has pointed at this machine must not read the run (DNS rebinding).
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            try:
                self._answer(self.server.page(), "text/html; charset=utf-8")
            except (MeritError, OSError) as error:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
        elif self.path == "/state":
            self._answer(json.dumps({"state": run_state(self.server.root)}).encode(), "application/json")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The terminal shows the address, and nothing else."""


def run_state(root: Path) -> str:
    """A mark of name, size and time of every file that a report is made of."""
    mark = hashlib.sha256()
    for name, size, changed in _files(root):
        mark.update(f"{name}\0{size}\0{changed}\n".encode(errors="surrogateescape"))
    return mark.hexdigest()[:16]


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(_PASSED_OVER))
        for name in sorted(names):
            if (name.endswith(_READ) and name not in _IGNORED) or name == "DONE":
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # gone between the listing and the look
                    facts = path.stat()
                    yield str(path), facts.st_size, facts.st_mtime_ns
