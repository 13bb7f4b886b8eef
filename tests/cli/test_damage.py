"""What is damaged in a run directory is made again, or named in one line; and two processes do not share a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command, config_text, tree

from merit.run.guard import run_lock
from merit.run.layout import RunDir


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def split_run(tmp_path_factory, tiny_model) -> Path:
    """A folder with data, merit.yaml, and a run up to `split`."""
    from four_files import write_four_files
    from merit.cli.main import run

    folder = tmp_path_factory.mktemp("damage")
    write_four_files(folder)
    (folder / "merit.yaml").write_text(config_text(tiny_model))
    assert run(["run", str(folder / "merit.yaml"), "--until", "split", "-o", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def folder(split_run, tmp_path) -> Path:
    return Path(shutil.copytree(split_run, tmp_path / "copy"))


def flip(file: Path) -> None:
    """Flips one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def empty(file: Path) -> None:
    file.write_bytes(b"")


RESULTS = [
    "mixture.json",
    "data/chat.arrow",
    "data/last.arrow",
    "conflict/similarity.npy",
    "conflict/axes.json",
    "conflict/conflict.json",
    "split/partition.json",
]


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_result_is_made_again(name, damage: Callable[[Path], None], merit: Command, folder):
    run = folder / "run"
    whole = tree(run)
    damage(run / name)
    outcome = merit("run", run, "--until", "split")
    assert outcome.code == 0, outcome
    assert f"{name} damaged or gone" in outcome.err
    assert (run / name).read_bytes() == whole[name]


@pytest.mark.parametrize("damage", [cut, empty])
@pytest.mark.parametrize("name", ["mixture", "conflict", "split"])
def test_a_damaged_stage_record_means_that_the_stage_runs_again(name, damage, merit: Command, folder):
    run = RunDir(folder / "run")
    whole = tree(run.root)
    damage(run.stage(name))
    outcome = merit("run", run.root, "--until", "split")
    assert outcome.code == 0, outcome
    after = tree(run.root)
    for path in (*RESULTS, f".merit/{name}.json"):
        assert after[path] == whole[path]


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_configuration_is_named(damage, merit: Command, folder):
    run = folder / "run"
    damage(run / "config.yaml")
    (run / "config.yaml").write_text("mixture: [\n" + (run / "config.yaml").read_text())
    before = tree(run)
    outcome = merit("run", run)
    assert (outcome.code, len(outcome.lines)) == (2, 1)
    assert outcome.lines[0].startswith(f"{run}/config.yaml:")
    assert tree(run) == before


def test_torn_events_are_passed_over(merit: Command, folder):
    run = folder / "run"
    with (run / "events.jsonl").open("ab") as handle:
        handle.write(b'{"event": "sta\xff')
    assert merit("run", run, "--until", "split").code == 0
    assert merit("report", run).code == 0


def test_what_killed_processes_left_is_swept(merit: Command, folder):
    run = folder / "run"
    left = [run / "data" / "chat.arrow.77.part", run / "mixture.json.77.part", run / ".merit" / "x.77.part"]
    for file in left:
        file.write_bytes(b"half")
    assert merit("run", run, "--until", "split").code == 0
    assert not any(file.exists() for file in left)


def test_one_process_at_a_time(merit: Command, folder):
    run = RunDir(folder / "run")
    before = tree(run.root)
    with run_lock(run):
        outcome = merit("run", run.root)
    assert outcome.code == 2
    [line] = outcome.lines
    assert line.startswith(f"{run.root}: another process (pid ")
    assert {**tree(run.root), ".merit/lock": None} == {**before, ".merit/lock": None}


def test_a_new_run_that_another_process_has_begun_is_left_alone(merit: Command, folder):
    """The directory is not there when we look, and the other process's when we want to clean up."""
    run = RunDir(folder / "new")
    with run_lock(run):
        assert merit("run", folder / "merit.yaml", "-o", run.root).code == 2
        assert run.lock.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "{run}", "--from", "trian"], "`--from`: no stage 'trian'; did you mean `train`?"),
        (["run", "{run}", "--until", "x"], "`--until`: no stage 'x'; the stages are prepare, mixture, conflict"),
        (["run", "{run}", "--until", ""], "`--until`: no stage ''; the stages are prepare, mixture"),
        (["run", "{run}", "--from", "merge", "--until", "split"], "`--from`: the stage `merge` comes after `split`"),
        (
            ["train", "{run}", "--branch", "7"],
            "{run}: no branch 7 of 'merit' is planned here; `merit train` plans branches",
        ),
        (["train", "{run}", "--branch", "0", "--method", "../.."], "{run}: no branch 0 of '../..' is planned here"),
        (["train", "{run}/nowhere", "--branch", "0"], "{run}/nowhere: no branch 0 of 'merit' is planned here"),
        (["logs", "{run}", "7"], "{run}: no branch 7 of 'merit' is planned here; `merit train` plans branches"),
        (["status", "{run}/config.yaml"], "{run}/config.yaml: is a file, not a run directory"),
        (["run", "{run}/data"], "{run}/data: not a run directory: there is no config.yaml in it"),
    ],
)
def test_what_is_not_there(arguments, expected, merit: Command, folder):
    run = folder / "run"
    before = tree(run)
    outcome = merit(*(argument.format(run=run) for argument in arguments))
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
    assert outcome.lines[0].startswith(expected.format(run=run))
    assert tree(run) == before
