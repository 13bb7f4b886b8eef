"""`events.jsonl`: what happened in a run, one JSON object per line, append-only."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merit.base.files import disk_errors
from merit.base.record import whole


def append_event(path: Path, event: str, **fields: Any) -> None:
    """Appends one event with its time (Unix seconds) and host, in one `write`, so that processes never mix lines."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, "host": socket.gethostname(), **fields})
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and not _ends_line(path)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (("\n" if torn else "") + line + "\n").encode())
        finally:
            os.close(handle)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole events, without lines that a kill or a full disk cut, or that merit did not write."""
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line, parse_int=whole, parse_constant=_refused)
                if isinstance(value, dict):
                    events.append(value)
    return events


def is_job(stage: str) -> bool:
    """Whether this is the name of a job ("train merit 0", "gradients worker 1"). Its stage's time includes a job's."""
    return stage.startswith("train ") or " worker " in stage


@contextlib.contextmanager
def stage_events(path: Path, stage: str) -> Iterator[dict[str, Any]]:
    """Logs the start and end (or failure) of a stage. The end event has what the caller adds to the yielded dict."""
    append_event(path, "start", stage=stage)
    started = time.monotonic()
    extra: dict[str, Any] = {}
    try:
        yield extra
    except BaseException as error:
        seconds = round(time.monotonic() - started, 3)
        append_event(path, "failed", stage=stage, seconds=seconds, error=f"{type(error).__name__}: {error}"[:500])
        raise
    append_event(
        path,
        "end",
        stage=stage,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
        **extra,
    )


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # On Linux, ru_maxrss starts at the size of the process that forked this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _ends_line(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"
