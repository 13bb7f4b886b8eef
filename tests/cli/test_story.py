"""What a run says of itself: before it starts, of its groups, and in the end."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import yaml
from command import Command
from rich.cells import cell_len
from rich.console import Console

from merit.cli import console
from merit.cli.results import print_results
from merit.run.layout import RunDir
from merit.split.partition import Group, Partition

OLD = Path(__file__).parents[1] / "run" / "old_run"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A finished run, beside its model and data."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old" / "run"


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def recipe(old_run: Path, merit: Command) -> Path:
    """A configuration whose run that is, and which it was last called with."""
    values = yaml.safe_load((old_run / "config.yaml").read_text())
    values["model"]["path"] = "model"
    for item in values["mixture"].values():
        item["path"] = f"data/{Path(item['path']).name}"
    file = old_run.parent / "merit.yaml"
    file.write_text(yaml.safe_dump(values | {"output": "run"}))
    assert merit("run", file).code == 0
    return file


def change(file: Path, section: str, **settings: object) -> None:
    values = yaml.safe_load(file.read_text())
    values[section] |= settings
    file.write_text(yaml.safe_dump(values))


def screen(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=shown, width=width, highlight=False, markup=False))
    return shown


@pytest.mark.parametrize(("width", "below"), [(60, "training"), (80, "MERIT"), (100, "MERIT"), (200, "MERIT")])
def test_the_table_fits_the_terminal_and_never_takes_more_than_100(old_run, monkeypatch, width, below):
    shown = screen(monkeypatch, width)
    print_results(RunDir(old_run), None, json=False)
    lines = shown.getvalue().splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("  base: "))]
    assert len(table) == 2 + 4  # a header of two lines, and no model takes more than one
    assert max(map(cell_len, table)) <= min(width, 100)
    assert table[4].split()[:6] == ["joint", "5.660", "±", "0.012", "★", "0.000"]
    assert any(below in line for line in lines[len(table) :])


def test_one_sentence_says_what_the_table_means(old_run, monkeypatch):
    shown = screen(monkeypatch, 80)
    print_results(RunDir(old_run), None, json=False)
    assert shown.getvalue().splitlines()[-2] == (
        "The merge of 2 branches is worse than joint training in the mixture and in drift from θ0."
    )


def test_a_table_without_columns_to_move_is_as_it_was(monkeypatch):
    shown = screen(monkeypatch, 200)
    console.print_table([["name", "a rather long title of a column"], ["x", "1"]])
    assert "a rather long title of a column" in shown.getvalue()


def test_status_of_a_finished_run(old_run, merit):
    merit("report", old_run)
    lines = merit("status", old_run).out.splitlines()
    assert lines[0].split() == ["branch", "state", "steps", "datasets"]
    assert lines[1].split()[:4] == ["merit", "0", "done", "4"]
    assert lines[4] == "3 branches: 3 done"
    assert lines[5].startswith("The merge of 2 branches is worse")
    assert lines[6:] == [f"merged: {old_run}/merged", f"report: {old_run}/report.html"]


def test_status_of_a_run_that_is_not_finished(old_run, merit):
    for name in ("DONE", "job.json"):
        (old_run / "branches" / "01" / name).unlink()
    out = merit("status", old_run).out
    assert "3 branches: 2 done and 1 planned" in out
    assert "The merge" not in out
    assert "where" in out.splitlines()[0]


def test_a_changed_setting_is_told_before_the_run_goes_on(recipe, merit):
    change(recipe, "evaluate", held_out=3)
    told = merit("run", recipe).err.splitlines()
    at = told.index("changed since the last run: evaluate.held_out 4 → 3")
    assert at < told.index("mixture: unchanged, kept")
    assert told[at + 1] == (
        "keeps mixture, conflict, split, train, merge; does evaluate (evaluate changed) and what depends on it"
    )
    assert not re.search("changed since|^keeps", merit("run", recipe).err, re.MULTILINE)


def test_programs_that_share_the_cores_are_told(recipe, merit, monkeypatch):
    monkeypatch.setattr("merit.pipeline.usable_cores", lambda: 4)
    monkeypatch.setattr("merit.pipeline.busy_elsewhere", lambda: 1.2)
    said = "other programs keep 1 of 4 cores busy: OMP_NUM_THREADS=3 is faster beside them"
    change(recipe, "evaluate", held_out=3)
    assert said not in merit("run", recipe).err  # the user has said how many threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert said not in merit("run", recipe).err  # nothing to do
    change(recipe, "evaluate", held_out=4)
    assert said in merit("run", recipe).err.splitlines()


def test_a_changed_learning_rate_keeps_the_gradients(recipe, merit):
    change(recipe, "train", learning_rate=1e-3)
    told = merit("run", recipe, "--until", "train").err
    assert re.search(r"^changed since the last run: train\.learning_rate 0\.\d+ → 0\.001$", told, re.MULTILINE)
    assert "keeps mixture, conflict, split; does train (train changed) and what depends on it" in told
    assert "conflict: unchanged, kept" in told


def test_a_dataset_that_goes_is_told_by_name(recipe, merit):
    values = yaml.safe_load(recipe.read_text())
    del values["mixture"]["shout"]
    recipe.write_text(yaml.safe_dump(values))
    told = merit("run", recipe, "--until", "split").err
    assert "changed since the last run: mixture.shout removed" in told
    assert re.search("^does mixture .* and what depends on it$", told, re.MULTILINE)
    assert re.search("^K = 2 groups: .* · ", told, re.MULTILINE)


def test_a_new_run_has_nothing_to_tell(recipe, merit):
    told = merit("run", recipe, "-o", recipe.parent / "new", "--until", "split").err
    assert not re.search("changed since|what depends on it", told)
    assert re.search("^K = 2 groups: .* · ", told, re.MULTILINE)


def test_a_stage_that_is_asked_for_again(old_run, merit):
    told = merit("run", old_run, "--from", "evaluate").err
    assert "does evaluate (again, as you asked) and what depends on it" in told


def test_a_damaged_configuration_of_the_last_call_is_no_obstacle(tmp_path):
    from merit.config import RunConfig
    from merit.config.changes import changed_settings

    config = RunConfig.model_validate({"model": "x", "mixture": {"a": {"path": "b"}}, "split": {"splitter": "single"}})
    for text in ("[", "- a", ""):
        (tmp_path / "config.yaml").write_text(text)
        assert changed_settings(tmp_path / "config.yaml", config) == []
    assert changed_settings(tmp_path / "nowhere.yaml", config) == []


def test_rounds_that_come_or_go_are_told(tmp_path):
    from merit.config import RunConfig
    from merit.config.changes import changed_settings
    from merit.config.run import dump_config

    def config(**train):
        small = {"model": "x", "mixture": {"a": {"path": "b"}}, "split": {"splitter": "single"}}
        return RunConfig.model_validate({**small, "train": train})

    once, four = config(), config(rounds=4, outer={"rate": 0.7})
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(once, tmp_path))
    assert changed_settings(file, once) == []
    assert changed_settings(file, four) == [
        "train.rounds 1 → 4", "train.outer none → {'rate': 0.7, 'momentum': 0.0}"
    ]  # fmt: skip
    file.write_text(dump_config(four, tmp_path))
    assert "train.rounds 4 → 1" in changed_settings(file, once)


def test_the_groups_in_a_line():
    def line(width: int, *groups: list[str]) -> str:
        made = [Group(datasets=group, tokens=1) for group in groups]
        return Partition(splitter="pca", groups=made, scores={}, cuts=[]).in_a_line(width)

    groups = (["arithmetic", "algebra", "gcd"], ["choice"], ["code", "poems"])
    assert line(100, *groups) == "K = 3 groups: arithmetic, algebra, gcd · choice · code, poems"
    assert line(60, *groups) == "K = 3 groups: arithmetic, algebra +1 · choice · code, poems"
    assert line(50, *groups) == "K = 3 groups: arithmetic +2 · choice · code +1"
    assert line(20, *groups) == "K = 3 groups: arith…"
    assert line(100, ["a"]) == "K = 1 group: a"


def test_one_branch_is_one_branch(tmp_path):
    from merit.cli.branch_commands import _summary
    from merit.run.layout import RunDir
    from merit.train.watch import BranchStatus

    one = BranchStatus(**dict.fromkeys(BranchStatus.__dataclass_fields__) | {"state": "planned"})
    assert _summary(RunDir(tmp_path), [one]) == ["1 branch: 1 planned"]
