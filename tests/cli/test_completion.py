"""The Tab key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from merit.cli.main import run
from merit.config.sections import ModelConfig, TrainConfig
from merit.train.spec import BranchData, BranchSpec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, a run of two branches and a baseline, and a folder that is no run."""
    root = tmp_path / "runs" / "demo"
    for k, names in enumerate((["gcd", "lcm"], ["chat\x1b[2J"])):
        (root / "branches" / f"{k:02d}").mkdir(parents=True)
        BranchSpec(
            method="merit",
            branch=k,
            model=ModelConfig(path="model"),
            model_fingerprint="m",
            train=TrainConfig(),
            data=[BranchData(name=name, data=f"data/{name}.arrow", weight=1.0, fingerprint="f") for name in names],
            max_length=64,
            planned_tokens=1,
            seed=0,
        ).save(root / "branches" / f"{k:02d}" / "spec.json")
    joint = root / "baselines" / "joint" / "branches" / "00"
    joint.mkdir(parents=True)
    (joint / "spec.json").touch()
    (root / "config.yaml").touch()
    (root / "mixture.json").write_text(json.dumps({"datasets": [{"name": name} for name in ("gcd", "lcm", "\x1b[2J")]}))
    (tmp_path / "data").mkdir()
    (tmp_path / "merit.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash is told when Tab is hit at the end of `line`."""
    monkeypatch.setenv("_MERIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit) as caught:
        run([])
    assert caught.value.code == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("merit sta", ["status"]),
        ("merit run ", ["merit.yaml", "runs/demo"]),
        ("merit run m", ["merit.yaml"]),
        ("merit logs ", ["runs/demo"]),
        ("merit logs runs/", ["runs/demo"]),
        ("merit logs runs/demo ", ["0", "1"]),
        ("merit logs runs/demo 1", ["1"]),
        ("merit logs runs/demo 0 --method ", ["merit", "joint"]),
        ("merit logs --method joint runs/demo ", ["0"]),
        ("merit train runs/demo --branch ", ["0", "1"]),
        ("merit remove runs/demo ", ["gcd", "lcm"]),
        ("merit handover runs/demo --to a", ["axolotl"]),
        ("merit logs nowhere ", []),
        ("merit remove data ", []),
    ],
)
def test_what_is_offered(place: Path, monkeypatch, capsys, line: str, expected: list[str]):
    assert offered(line, monkeypatch, capsys) == expected


def test_in_the_first_round_its_branches_are_offered(place: Path, monkeypatch, capsys):
    run = place / "runs" / "demo"
    (run / "rounds" / "01").mkdir(parents=True)
    (run / "branches").rename(run / "rounds" / "01" / "branches")
    assert offered("merit logs runs/demo ", monkeypatch, capsys) == ["0", "1"]


def test_a_branch_says_what_it_is_trained_on(place: Path, monkeypatch, capsys):
    monkeypatch.setenv("_MERIT_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "merit logs runs/demo ")
    with pytest.raises(SystemExit):
        run([])
    told = capsys.readouterr().out
    assert '"0":"gcd, lcm"' in told
    assert '"1":"chat' in told
    assert "\x1b" not in told


def test_damaged_files_offer_nothing(place: Path, monkeypatch, capsys):
    for text in ("[1]", '{"datasets": 3}', "{", '{"datasets": [3, {"name": 4}]}'):
        (place / "runs" / "demo" / "mixture.json").write_text(text)
        assert offered("merit remove runs/demo ", monkeypatch, capsys) == []


def test_in_bash_itself(place: Path):
    """The script that `merit --install-completion` installs, run by the shell that it is for."""
    program = place / "merit"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m merit "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(_MERIT_COMPLETE=source_bash ./merit); complete -p merit; "
        'COMP_WORDS=(merit logs runs/demo ""); COMP_CWORD=3; _merit_completion ./merit; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=place, timeout=120)
    assert done.stderr == ""
    assert done.stdout == "complete -o default -F _merit_completion merit\n0 1\n"
