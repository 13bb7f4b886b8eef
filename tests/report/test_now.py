"""What a run is doing now, from its events."""

from __future__ import annotations

from typing import Any

import pytest

from merit.report.build import _earlier, running_now


def event(kind: str, stage: str, time: float) -> dict[str, Any]:
    return {"event": kind, "stage": stage, "time": time, "host": "a"}


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "Nothing has begun yet."),
        ([event("start", "mixture", 0)], "Running: `mixture`, for 1 min."),
        (
            [event("start", "mixture", 0), event("end", "mixture", 30)],
            "Nothing is running; `mixture` was done last, 30 s ago.",
        ),
        (
            [event("start", "train", 0), event("failed", "train", 20)],
            "`train` failed, 40 s ago; the same command resumes.",
        ),
        (
            [event("start", "train", 0), event("start", "train merit 0", 1), event("start", "train merit 1", 2)],
            "Running: `train`, 2 branches at once, for 1 min.",
        ),
        (
            [event("start", "train", 0), event("start", "train merit 0", 1), event("end", "train merit 0", 9)],
            "Running: `train`, for 1 min.",
        ),
        (
            [event("start", "evaluate", 0), *(event("start", f"evaluate worker {k}", 1) for k in range(3))],
            "Running: `evaluate`, 3 workers at once, for 1 min.",
        ),
        ([{"event": "start", "stage": 3}, {"time": 1}, event("start", "merge", 10_000)], "Running: `merge`."),
    ],
)
def test_what_is_said(events: list[dict[str, Any]], said: str) -> None:
    assert running_now(events, 60.0) == said


def test_results_that_a_run_is_about_to_replace_are_told() -> None:
    done = [event(kind, stage, 0) for stage in ("mixture", "train", "evaluate", "report") for kind in ("start", "end")]
    assert _earlier(done) == ""
    assert _earlier([*done, event("start", "evaluate", 1), event("start", "train merit 0", 1)]) == ""
    anew = [*done, event("start", "train", 1), event("failed", "train", 2)]
    assert _earlier(anew) == "The run has begun anew and is not finished; these results are of before. "
    assert _earlier([*anew, event("start", "report", 3)]) == ""
    assert _earlier([*anew, event("end", "evaluate", 3)]) == ""
