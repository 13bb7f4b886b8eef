"""A diagnostic is one file: written into `merit_ext/checks/`, it is known everywhere at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = '''\
"""Sparsity: how many weights of the merge are nearly zero?"""

from __future__ import annotations

from pydantic import Field

from merit.config.sections import Section
from merit.diagnose.check import Check, Reading
from merit.diagnose.records import CheckResult


class Settings(Section):
    """Sparsity: what counts as zero."""

    below: float = Field(default=0.01, gt=0, description="A weight of a smaller size counts as zero.")


class SparsityResult(CheckResult):
    """`sparsity.json`."""

    share: float
    below: float


def _run(bench):
    import torch

    bench.live.set({"merge": 1.0})
    weights = torch.cat([parameter.detach().flatten() for parameter in bench.live.parameters.values()])
    below = bench.settings.below
    return SparsityResult(share=float((weights.abs() < below).double().mean()), below=below)


def _figure(result, draw):
    return draw.Figure(
        id="sparsity",
        title="Weights of the merge that are nearly zero",
        alt="One bar.",
        traces=[{"type": "bar", "x": ["merge"], "y": [result.share], "marker": {"color": "--accent"}}],
        layout={},
        table=draw.DataTable(["model", "share"], [["merge", f"{result.share:.3f}"]]),
    )


CHECK = Check(
    title="Is the merge sparse?",
    result=SparsityResult,
    run=_run,
    rows=lambda result: [[f"weights below {result.below:g}", f"{result.share:.3f}", "–"]],
    reading=lambda result: Reading(f"The share is {result.share:.3f}.", "A higher bar is a sparser merge."),
    figure=_figure,
    settings=Settings,
)
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder on the Python path with the one file."""
    file = tmp_path / "place" / "merit_ext" / "checks" / "sparsity.py"
    file.parent.mkdir(parents=True)
    file.write_text(CHECK)
    return tmp_path / "place"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "run" / "old_run", tmp_path / "old")
    return tmp_path / "old" / "run"


def python(place: Path | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own: what is installed is found once a process."""
    paths = [str(ROOT / "src"), *([str(place)] if place else []), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, check=False)


def test_one_file_is_known_everywhere(place: Path) -> None:
    schema = json.loads(python(place, "-m", "merit", "schema").stdout)
    assert "sparsity" in schema["$defs"]["DiagnoseConfig"]["properties"]["checks"]["items"]["enum"]
    assert "sparsity" in schema["$defs"]["CheckSettings"]["properties"]
    assert "below" in schema["$defs"]["Settings"]["properties"]
    assert "sparsity" in python(place, "-m", "merit", "diagnose", "--help").stdout
    page = python(place, ROOT / "docs" / "generate_configuration.py").stdout
    assert "or `sparsity` |" in page
    assert "| `diagnose.settings.sparsity.below` | number, > 0 | `0.01` | A weight of a smaller size counts" in page
    assert "sparsity" not in python(None, "-m", "merit", "diagnose", "--help").stdout


def test_it_runs_and_stands_in_the_report(place: Path, old_run: Path) -> None:
    command = ("-m", "merit", "diagnose", old_run, "--checks", "sparsity,lmc")
    done = python(place, *command)
    assert done.returncode == 0, done.stderr
    assert "lmc: unchanged, kept" in done.stderr  # another's check makes no result stale
    assert "weights below 0.01" in done.stdout
    found = json.loads((old_run / "diagnostics" / "sparsity.json").read_text())
    assert 0 < found["share"] < 1
    report = (old_run / "report.html").read_text(encoding="utf-8")
    assert "Is the merge sparse?" in report
    assert 'id="fig-sparsity"' in report
    assert "A higher bar is a sparser merge." in report
    assert report.index("Is there a hill between the models?") < report.index("Is the merge sparse?")
    assert "sparsity: unchanged, kept" in python(place, *command).stderr

    config = old_run / "config.yaml"
    assert "settings:" not in config.read_text()
    config.write_text(
        config.read_text().replace("diagnose:\n", "diagnose:\n  settings: {sparsity: {below: 100.0}}\n", 1)
    )
    assert python(place, *command).returncode == 0
    assert json.loads((old_run / "diagnostics" / "sparsity.json").read_text())["share"] == 1
    # Without the file, its result is left alone and the rest of the report is drawn.
    config.write_text(config.read_text().replace("  settings: {sparsity: {below: 100.0}}\n", "", 1))
    assert python(None, "-m", "merit", "report", old_run).returncode == 0
    assert "Is the merge sparse?" not in (old_run / "report.html").read_text(encoding="utf-8")


def test_a_run_that_does_not_use_it_stays_as_it_is(place: Path, old_run: Path) -> None:
    done = python(place, "-m", "merit", "run", old_run)
    assert done.returncode == 0, done.stderr
    assert "diagnose: unchanged, kept" in done.stderr
    assert "sparsity" not in (old_run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{sparsity: {belw: 1}}", "`diagnose.settings.sparsity.belw`: unknown key; did you mean `below`?"),
        ("{sparsity: {below: -1}}", "`diagnose.settings.sparsity.below`: "),
        ("{lmc: {}}", "`diagnose.settings.lmc`: unknown key; known here: sparsity"),
    ],
)
def test_wrong_settings_are_one_line(place: Path, old_run: Path, settings: str, expected: str) -> None:
    config = old_run / "config.yaml"
    text = config.read_text().replace("losses:", "preemption_retries:")  # the old name is a line of its own
    config.write_text(text.replace("diagnose:\n", f"diagnose:\n  settings: {settings}\n", 1))
    done = python(place, "-m", "merit", "diagnose", old_run, "--checks", "sparsity")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{config}:")
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lmc", CHECK, "there is another extension of this name"),
        ("sparsity", "import nothing_of_this_name", "cannot be imported: No module named 'nothing_of_this_name'"),
        ("sparsity", "CHEK = 1", "defines no CHECK"),
        ("sparsity", CHECK.replace("default=0.01, ", ""), "each setting of a check needs a default"),
    ],
)
def test_a_file_that_is_no_check_is_one_line(place: Path, old_run: Path, name: str, text: str, expected: str) -> None:
    file = place / "merit_ext" / "checks" / f"{name}.py"
    file.write_text(text)
    assert python(place, "-m", "merit", "--help").returncode == 0
    done = python(place, "-m", "merit", "diagnose", old_run)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{file}: ")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_a_misspelt_key_load_neither_torch_nor_numpy(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: x\nmixtur: {}\n")
    code = (
        "import sys\n"
        "from merit.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "print('loaded', sorted({'torch', 'numpy', 'plotly'} & set(sys.modules)), 'code', code)\n"
    )
    for arguments in (("diagnose", "--help"), ("run", tmp_path / "bad.yaml")):
        done = python(place, "-c", code, *arguments)
        assert "loaded [] code" in done.stdout, done.stdout + done.stderr
