"""Ctrl-C, SIGTERM, SIGHUP and a kill: one line, the right exit code, no job left behind, and a rerun that resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import config_text, start

from merit.cli.main import run as cli

SECONDS = 90


def wait_for(what: Callable[[], object], *, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def jobs_of(run: Path) -> list[int]:
    """Pids of the branch jobs of `run`, by their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if b"--branch" in command and str(run).encode() in command and not dead:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def split_run(tiny_model, tmp_path_factory) -> Path:
    """A run that is ready to train, for hours."""
    folder = tmp_path_factory.mktemp("long")
    lines = [json.dumps({"prompt": f"say {i}", "completion": f"{i}"}) for i in range(40)]
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    text = config_text(tiny_model).replace("max_length: 128", "max_length: 128, epochs: 100000, batch_tokens: 64")
    head, _, tail = text.partition("  chat:")
    file = folder / "merit.yaml"
    file.write_text(head + "  a: {path: a.jsonl}\n  b: {path: b.jsonl}\n" + tail[tail.index("split:") :])
    assert cli(["run", str(file), "--until", "split", "-o", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def ready(split_run, tmp_path) -> Path:
    return Path(shutil.copytree(split_run, tmp_path / "run"))


def in_training(run: Path, number: signal.Signals, *, to_group: bool = False) -> tuple[int, str]:
    """Sends a signal to `merit run` while a branch trains; returns exit code and stderr."""
    process = start("run", run, start_new_session=True)
    try:
        wait_for(lambda: (run / "branches" / "00" / "progress.json").exists() or process.poll() is not None)
        assert jobs_of(run)
        if to_group:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    wait_for(lambda: not jobs_of(run), seconds=10)
    return process.returncode, err


def test_ctrl_c(ready):
    code, err = in_training(ready, signal.SIGINT, to_group=True)
    assert code == 130
    assert err.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in err
    assert not (ready / "branches" / "00" / "DONE").exists()


def test_sigterm(ready):
    code, err = in_training(ready, signal.SIGTERM)
    assert code == 143
    assert err.splitlines()[-1] == "ended by SIGTERM; run the same command again to resume"
    assert "Traceback" not in err


def test_a_closed_terminal(ready):
    code, err = in_training(ready, signal.SIGHUP)
    assert code == 129
    assert "Traceback" not in err


def test_a_killed_run_takes_its_jobs_along(ready):
    code, _ = in_training(ready, signal.SIGKILL)
    assert code == -9


def test_ctrl_c_before_training(tiny_model, four_files):
    """A generator that takes long keeps the run in its first stage."""
    file = four_files / "merit.yaml"
    entry = '{path: "reasoning_gym:gcd", max_examples: 10000000}'
    file.write_text(config_text(tiny_model, {"x": entry}))
    process = start("run", file)
    events = four_files / "runs" / "merit" / "events.jsonl"
    wait_for(events.exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert err.splitlines() == ["interrupted; run the same command again to resume"]


def test_an_ignored_signal_stays_ignored(tiny_model, four_files):
    """`nohup merit run` goes on when the terminal closes."""
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model))
    ignore = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("run", file, "--until", "mixture")
    finally:
        signal.signal(signal.SIGHUP, ignore)
    wait_for((four_files / "runs" / "merit" / "events.jsonl").exists)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
