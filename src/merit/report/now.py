"""What a run is doing at this moment, from its events: for a page that follows it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.record import whole
from merit.report.words import duration, plural
from merit.run.events import is_job


def running_now(events: Sequence[dict[str, Any]], time: float) -> str:
    """One sentence. Events cannot tell a stage that runs from one whose process was killed: it says since when."""
    open_stages: dict[str, dict[str, Any]] = {}
    last: dict[str, Any] | None = None
    for event in events:
        name, kind = event.get("stage"), event.get("event")
        if not isinstance(name, str) or kind not in ("start", "end", "failed"):
            continue
        last = event
        if kind == "start":
            open_stages[name] = event
        else:
            open_stages.pop(name, None)
    if last is None:
        return "Nothing has begun yet."
    stages = {name: event for name, event in open_stages.items() if not is_job(name)}
    if stages:
        name, event = list(stages.items())[-1]
        branches = sum(job.startswith("train ") for job in open_stages)
        workers = len(open_stages) - len(stages) - branches
        jobs = [plural(branches, "branch", "branches")] * bool(branches) + [plural(workers, "worker")] * bool(workers)
        return f"Running: `{name}`{''.join(f', {told} at once' for told in jobs)}{_since(event, time)}."
    if last["event"] == "failed":
        return f"`{last['stage']}` failed{_since(last, time)}; the same command resumes."
    return f"Nothing is running; `{last['stage']}` was done last{_since(last, time)}."


def _since(event: dict[str, Any], time: float) -> str:
    moment = event.get("time")
    if not isinstance(moment, int | float) or isinstance(moment, bool) or time < moment:
        return ""
    told = duration(max(10.0, time - moment))  # whole seconds
    return f", for {told}" if event.get("event") == "start" else f", {told} ago"


@dataclass(frozen=True)
class LogLine:
    """One logged step."""

    step: int
    loss: float
    supervised_tokens: int | None
    seconds: float | None


def read_log(path: Path) -> list[LogLine]:
    """The steps that have a finite loss, in order; a kill may have torn the last line, a resume repeated some."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines: dict[int, LogLine] = {}
    for raw in text.splitlines():
        try:
            value = json.loads(raw, parse_int=whole)
        except (ValueError, RecursionError):
            continue
        line = _line(value)
        if line is not None:
            lines[line.step] = line
    return [lines[step] for step in sorted(lines)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """A running mean over up to `window` values around each. It narrows at the start, where losses fall steeply."""
    half = max(0, window // 2)
    result = []
    for i in range(len(values)):
        part = values[i - min(half, i) : i + min(half, i) + 1]
        result.append(sum(part) / len(part))
    return result


def _line(value: Any) -> LogLine | None:
    if not isinstance(value, dict):
        return None
    step, loss = _number(value.get("step")), _number(value.get("loss"))
    if step is None or loss is None:
        return None
    tokens = _number(value.get("supervised_tokens"))
    return LogLine(int(step), loss, None if tokens is None else int(tokens), _number(value.get("seconds")))


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
