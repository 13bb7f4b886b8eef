"""Writes `report.html`: reads the run, tells the story in order, renders one file that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.files import write_text
from merit.base.words import compact, duration, plural
from merit.report.evidence import Evidence, read_evidence
from merit.report.fit import plausible
from merit.report.page import Section, render_page
from merit.report.sections.asked import asked, reproduce
from merit.report.sections.basin import diagnostics, gate
from merit.report.sections.conflict import conflict
from merit.report.sections.cost import cost
from merit.report.sections.gains import gains
from merit.report.sections.split import split
from merit.report.sections.training import training
from merit.report.verdict import Verdict, reach_verdict
from merit.run.events import is_job
from merit.run.layout import RunDir


def build_report(root: Path) -> Path:
    """Writes RUN/report.html from whatever the run has so far, and returns its path.

    Raises:
        InputError: there is no such folder, or it may not be written; a file of the run makes no sense.
        StageError: the disk is full.
    """
    if not root.is_dir():
        raise InputError("no such run directory", file=root)
    path = RunDir(root).report
    write_text(path, render_report(read_evidence(root)))
    return path


def render_report(evidence: Evidence, *, follow: str | None = None) -> str:
    """The whole page. `follow` is the state that a served page shows: it asks for newer ones, and says what runs."""
    verdict = reach_verdict(evidence)
    return render_page(
        "report.html.j2",
        eyebrow="Report of a run",
        follow=follow,
        now=running_now(evidence.events, time.time()) if follow else None,
        name=evidence.run.root.resolve().name,
        headline=_earlier(evidence.events) + verdict.headline if verdict else _state(evidence),
        measures=_measures(evidence, verdict),
        sections=chapters(evidence, verdict),
    )


def chapters(evidence: Evidence, verdict: Verdict | None = None) -> list[Section]:
    """The story, chapter by chapter; `verdict` is reached here unless it is known."""
    verdict = verdict or reach_verdict(evidence)
    return [
        asked(evidence),
        conflict(evidence),
        split(evidence),
        *gate(evidence),
        training(evidence),
        *diagnostics(evidence),
        gains(evidence, verdict),
        cost(evidence),
        reproduce(evidence),
    ]


_BEFORE_RESULTS = frozenset({"mixture", "conflict", "split", "rounds", "train"})


def _earlier(events: Sequence[dict[str, Any]]) -> str:
    """Said before results that a later run, which has not come to its end, is about to replace."""
    later = False
    for event in events:
        kind, stage = event.get("event"), event.get("stage")
        if kind == "start" and stage in _BEFORE_RESULTS:
            later = True
        elif stage == "report" or (kind, stage) == ("end", "evaluate"):
            later = False
    return "The run has begun anew and is not finished; these results are of before. " if later else ""


def _state(evidence: Evidence) -> str:
    """What can be said before there is a result."""
    if evidence.table:
        return "The run has been evaluated; there is no merge to compare yet."
    main = evidence.main
    if main.results:
        told = "Branches have" if main.finished else f"{main.told_branches} branches have"
        return f"{told} been trained; nothing has been evaluated yet."
    if evidence.main.partition:
        return "The mixture has been split; no branch of the main method is trained to its end yet."
    if evidence.conflict:
        return "Conflict has been measured; the mixture has not been split yet."
    return "The run has begun."


def _measures(evidence: Evidence, verdict: Verdict | None) -> list[tuple[str, str]]:
    """The few large numbers below the title."""
    found = []
    if evidence.mixture:
        found.append((str(len(evidence.mixture.datasets)), "datasets"))
        found.append((compact(sum(evidence.mixture.planned_tokens.values())), "supervised tokens per epoch"))
    if evidence.main.partition:
        found.append((str(len(evidence.main.partition.groups)), "branches"))
    if verdict:
        found.append((f"{verdict.merge.in_mixture:.3f}", "loss in the mixture"))
        if verdict.merge.unseen is not None:
            found.append((f"{verdict.merge.unseen:.3f}", "loss on unseen datasets"))
    return found


def running_now(events: Sequence[dict[str, Any]], moment: float) -> str:
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
        return f"Running: `{name}`{''.join(f', {told} at once' for told in jobs)}{_since(event, moment)}."
    if last["event"] == "failed":
        return f"`{last['stage']}` failed{_since(last, moment)}; the same command resumes."
    return f"Nothing is running; `{last['stage']}` was done last{_since(last, moment)}."


def _since(event: dict[str, Any], now: float) -> str:
    moment = plausible(event.get("time"))
    if moment is None or now < moment:
        return ""
    told = duration(max(10.0, now - moment))  # whole seconds
    return f", for {told}" if event.get("event") == "start" else f", {told} ago"
