"""`events.jsonl`: whole lines, whatever was torn before, and whoever writes at the same time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from merit.base.errors import InputError, StageError
from merit.run.events import append_event, peak_memory_bytes, read_events, stage_events


def test_an_event_is_a_line(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    append_event(path, "start", stage="split")
    append_event(path, "note", text="θ\nb")
    assert path.read_text().count("\n") == 2
    one, two = read_events(path)
    assert {key: one[key] for key in ("event", "stage")} == {"event": "start", "stage": "split"}
    assert one["time"] > 1.7e9
    assert one["host"]
    assert two["text"] == "θ\nb"


def test_no_file_no_events(tmp_path):
    assert read_events(tmp_path / "nothing") == []


@pytest.mark.parametrize("torn", [b'{"event": "sta', b'{"a": "\xff', b"\x00\x00", b"[1]", b"null"])
def test_a_torn_line_is_passed_over_and_not_continued(torn, tmp_path):
    path = tmp_path / "events.jsonl"
    append_event(path, "first")
    with path.open("ab") as handle:
        handle.write(torn)
    append_event(path, "second")
    append_event(path, "third")
    assert [event["event"] for event in read_events(path)] == ["first", "second", "third"]


def test_lines_of_processes_do_not_mix(tmp_path):
    path = tmp_path / "events.jsonl"
    program = (
        "import sys\nfrom pathlib import Path\nfrom merit.run.events import append_event\n"
        "for i in range(100): append_event(Path(sys.argv[1]), 'x' * 500, who=sys.argv[2], i=i)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(who)]) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    events = read_events(path)
    assert len(events) == 300
    for who in "012":
        assert [event["i"] for event in events if event["who"] == who] == list(range(100))


def test_a_stage_begins_and_ends(tmp_path):
    path = tmp_path / "events.jsonl"
    with stage_events(path, "train") as facts:
        facts["tokens"] = 12
    start, end = read_events(path)
    assert (start["event"], start["stage"]) == ("start", "train")
    assert (end["event"], end["tokens"]) == ("end", 12)
    assert 0 <= end["seconds"] < 5
    assert end["peak_memory_bytes"] > 1e6


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StageError("no\nmore"), "StageError: no\\nmore"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (InputError("m" * 1000), "InputError: " + "m" * 488),
    ],
)
def test_a_failure_is_told_and_goes_on(error, text, tmp_path):
    path = tmp_path / "events.jsonl"
    with pytest.raises(type(error)), stage_events(path, "train"):
        raise error
    assert read_events(path)[1]["error"] == text


def test_memory_is_the_processes_own():
    program = "from merit.run.events import peak_memory_bytes; import json; print(json.dumps(peak_memory_bytes()))"
    child = int(json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout))
    assert 5e6 < child < 2e8
    assert peak_memory_bytes() > child / 2
