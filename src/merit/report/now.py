"""What a run is doing at this moment, from its events: for a page that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
