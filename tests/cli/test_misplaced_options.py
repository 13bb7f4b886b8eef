"""Options that nothing would read where they stand are refused, not passed over."""

from __future__ import annotations

import pytest
from command import Command


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("merge merit.yaml --weights uniform", "`--weights`: a run is merged as its configuration says"),
        ("merge merit.yaml --dtype input", "`--dtype`: a run is merged as its configuration says"),
        ("merge merit.yaml --keep-sums sums", "`--keep-sums`: a run is merged as its configuration says"),
        ("merge a b --redo -o c", "`--redo`: is for a run"),
        ("merge recipe.yml --dtype float16 -o c", "`--dtype`: a recipe says this itself; change it there"),
        ("merge --verify c --weights 1,2", "`--weights`: a merge is verified as its own record says it was made"),
        ("merge a b --adapter exact --base t --scale 0.5 -o c", "`--scale`: is for whole models; leave out --adapter"),
        ("train merit.yaml --processes 2", "`--processes`: is for one branch's job; add --branch"),
        ("train merit.yaml --model theta", "`--model`: is for one branch's job; add --branch"),
        ("conflict merit.yaml --examples 50", "`--examples`: is for a worker; without --worker it is `calibration."),
        ("evaluate merit.yaml --precision fp32", "`--precision`: is for a worker; without --worker it is `train."),
    ],
)
def test_refused(arguments, expected, merit: Command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yml").write_text("merge_method: linear\n")
    outcome = merit(*arguments.split())
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
    assert outcome.lines[0].startswith(expected)


def test_as_a_job_gives_them(merit: Command, tmp_path):
    """Defaults on the command line count as given; with what they belong to they are read."""
    outcome = merit("train", tmp_path / "run", "--branch", "0", "--method", "merit", "--processes", "1")
    assert outcome.lines[0].startswith(f"{tmp_path / 'run'}: no branch 0 of 'merit' is planned here")
