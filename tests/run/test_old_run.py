"""A run directory that merit 0.1.0 made before its packages moved: nothing is redone, and every command reads it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import Command
from merit.merge.verify import verify_merge
from merit.pipeline import STAGE_NAMES

OLD = Path(__file__).parent / "old_run"
# Made anew at every call: the report, the card, the log of events, and the configuration with its versions.
REWRITTEN = {"report.html", "README.md", "events.jsonl", "config.yaml", ".merit/lock"}


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the run directory, beside the model and the data that it names."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old" / "run"


def contents(run: Path) -> dict[str, str]:
    files = {file.relative_to(run).as_posix(): file for file in run.rglob("*") if file.is_file()}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if name not in REWRITTEN
    }


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_a_rerun_redoes_nothing(old_run, merit):
    before = contents(old_run)
    done = merit("run", old_run)
    assert done.code == 0, done.err
    for stage in STAGE_NAMES:
        if stage not in ("prepare", "gate", "rounds", "track", "report"):  # not in this run; made at every call
            assert f"{stage}: unchanged, kept" in done.err
    assert contents(old_run) == before
    assert "joint training" in (old_run / "report.html").read_text()


def test_an_old_name_in_its_configuration_is_told_once(old_run, merit):
    """`launch.losses`, before preemptions had their name."""
    lines = (old_run / "config.yaml").read_text().splitlines()
    number = lines.index("  losses: 7") + 1
    done = merit("run", old_run)
    assert done.code == 0, done.err
    told = f"{old_run}/config.yaml:{number}: `launch.losses`: is now called `launch.preemption_retries`"
    assert "".join(done.err.split()).count("".join(told.split())) == 1
    assert "  preemption_retries: 7" in (old_run / "config.yaml").read_text().splitlines()
    assert "is now called" not in merit("run", old_run).err


def test_commands_read_it(old_run, merit):
    for command in (("report", old_run), ("diagnose", old_run, "--checks", "lmc"), ("status", old_run)):
        done = merit(*command)
        assert done.code == 0, done.err


def test_its_merge_verifies(old_run):
    branches = [old_run / "branches" / f"{k:02d}" / "checkpoint" for k in range(2)]
    found = verify_merge(old_run / "merged", inputs=branches, base=old_run.parent / "model")
    assert found.parameters_recomputed == found.parameters
    assert found.rounded_otherwise == 0


def test_damage_is_noticed(old_run, merit):
    table = old_run / "evaluation" / "table.json"
    table.write_text(table.read_text().replace("0", "1", 1))
    done = merit("run", old_run)
    assert done.code == 0, done.err
    assert "evaluating θ0, branches and merges on held-out examples (evaluation/table.json damaged or gone)" in done.err
    assert "merge: unchanged, kept" in done.err


def test_a_run_with_nothing_to_do_does_not_load_torch(old_run):
    code = (
        "import sys; from merit.cli.main import run; assert run(['run', sys.argv[1]]) == 0; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(old_run)], check=True, capture_output=True)
