"""Paths, lock, fingerprints, stage records, and the way back after bad input."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from merit.base.errors import InputError, StageError
from merit.base.files import write_json
from merit.base.kept import Kept
from merit.base.record import Record, Sealed, fingerprint
from merit.pipeline import check_stage, finish_stage, forget_stage
from merit.run.guard import Before, run_lock
from merit.run.layout import RunDir, relative

HOSTILE = ["../../etc/passwd", "/etc/passwd", "..", "a/b", "\x00", "x" * 1000, "é", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_the_run(name):
    run = RunDir(Path("/runs/one"))
    for path, folder in (
        (run.data(name), run.data_folder),
        (run.evaluation(name), run.evaluations),
        (run.stage(name), run.state),
        (run.method(name).root, run.root / "baselines"),
    ):
        assert Path(os.path.normpath(path)) == path
        assert path.parent == folder
        assert len(path.name.encode()) < 200


def test_the_layout():
    run = RunDir(Path("/r"))
    assert run.data("gsm8k") == Path("/r/data/gsm8k.arrow")
    assert run.method().root == run.root
    assert run.method("joint").branch(3).done == Path("/r/baselines/joint/branches/03/DONE")
    assert run.method().branch(12).checkpoint == Path("/r/branches/12/checkpoint")
    assert run.method().merged() == Path("/r/merged")
    assert run.method().merged(0.5) == Path("/r/merged@0.5")
    assert relative(run.data("a"), run.root) == "data/a.arrow"


class Model(BaseModel):
    a: int
    b: list[float]


def test_fingerprints():
    assert fingerprint(1, "a") == hashlib.sha256(b'[1,"a"]').hexdigest()[:16]
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(1, 2) != fingerprint([1, 2])
    assert fingerprint("12") != fingerprint("1", "2")
    assert fingerprint(Model(a=1, b=[2])) == fingerprint({"a": 1, "b": [2.0]})
    assert fingerprint([Model(a=1, b=[])]) == fingerprint([{"a": 1, "b": []}])
    assert fingerprint(1) != fingerprint("1") != fingerprint(True)
    with pytest.raises(TypeError):
        fingerprint(object())


def test_a_fingerprint_does_not_depend_on_the_process():
    program = "from merit.base.record import fingerprint; import sys; sys.stdout.write(fingerprint({'b': 1, 'a': 'θ'}))"
    env = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == fingerprint({"a": "θ", "b": 1})


def test_the_lock_is_exclusive_and_names_its_owner(tmp_path):
    run = RunDir(tmp_path / "run")
    with run_lock(run):
        assert int(run.lock.read_text()) == os.getpid()
        with pytest.raises(InputError, match=rf"another process \(pid {os.getpid()}\)"), run_lock(run):
            pass
    with run_lock(run):
        pass


def test_a_killed_owner_frees_the_lock(tmp_path):
    run = RunDir(tmp_path / "run")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom merit.run.layout import RunDir\n"
        "from merit.run.guard import run_lock\n"
        "with run_lock(RunDir(Path(sys.argv[1]))):\n    sys.stdout.write('x'); sys.stdout.flush(); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(run.root)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.read(1) == b"x"
    with pytest.raises(InputError, match=f"pid {owner.pid}"), run_lock(run):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with run_lock(run):
        pass


def test_a_stage_is_fresh_until_something_changes(tmp_path):
    run = RunDir(tmp_path)
    depends = {"train": "1", "model": "2"}
    assert check_stage(run, "merge", depends) == Kept()
    finish_stage(run, "merge", depends)
    assert check_stage(run, "merge", depends).fresh
    assert check_stage(run, "merge", {"train": "1", "model": "3"}).why == "model changed"
    assert check_stage(run, "merge", {"train": "0", "seed": "3"}).why == "model, seed, train changed"
    assert check_stage(run, "split", depends) == Kept()
    forget_stage(run, "merge")
    assert check_stage(run, "merge", depends) == Kept()
    forget_stage(run, "merge")


def test_a_damaged_result_makes_the_stage_stale(tmp_path):
    run = RunDir(tmp_path)
    result = run.method().partition
    write_json(result, {"groups": 1})
    finish_stage(run, "split", {"a": "1"}, [result])
    assert check_stage(run, "split", {"a": "1"}).fresh
    result.write_text(result.read_text().replace("1", "2"))
    state = check_stage(run, "split", {"a": "1"})
    assert (state.fresh, state.why, state.damaged) == (False, "split/partition.json damaged or gone", (result,))
    result.unlink()
    state = check_stage(run, "split", {"a": "2"})
    assert state.why == "a changed; split/partition.json damaged or gone"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "split"}', '{"stage": "split", "depends": {}, "x": 1}'])
def test_a_damaged_record_means_not_done(content, tmp_path):
    run = RunDir(tmp_path)
    finish_stage(run, "split", {})
    run.stage("split").write_text(content)
    assert not check_stage(run, "split", {}).fresh


class Point(Record):
    x: int
    y: float


def test_records(tmp_path):
    path = tmp_path / "p.json"
    Point(x=1, y=0.1).save(path)
    assert Point.load(path) == Point(x=1, y=0.1)
    path.write_text('{"x": "one", "y": 2}')
    with pytest.raises(InputError, match=r"p\.json: `x`: damaged or from another version: "):
        Point.load(path)
    path.write_text('{"x": 1, "y": NaN}')
    with pytest.raises(InputError, match="`y`"):
        Point.load(path)


def fill(run: RunDir, text: str) -> None:
    run.data_folder.mkdir(parents=True, exist_ok=True)
    for path in (run.config, run.data("a"), run.stage("mixture")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


def write_and_fail(run: RunDir, error: Exception, beside: Path | None = None) -> None:
    before = Before.of(run, run.config, run.stage("mixture"))
    with run_lock(run), before.restored_on_bad_input():
        fill(run, "new")
        if beside is not None:
            beside.mkdir()
        raise error


def test_a_new_run_vanishes_with_its_parents(tmp_path):
    with pytest.raises(InputError):
        write_and_fail(RunDir(tmp_path / "a" / "b" / "run"), InputError("bad"))
    assert everything(tmp_path) == {}


def test_parents_that_others_use_stay(tmp_path):
    with pytest.raises(InputError):
        write_and_fail(RunDir(tmp_path / "runs" / "one"), InputError("bad"), tmp_path / "runs" / "another")
    assert list(everything(tmp_path)) == ["runs", "runs/another"]


def test_an_old_run_is_put_back(tmp_path):
    run = RunDir(tmp_path / "run")
    with run_lock(run):
        run.config.write_text("old")
        (run.root / "mine").write_text("kept")
    old = everything(tmp_path)
    with pytest.raises(InputError):
        write_and_fail(run, InputError("bad"))
    assert everything(tmp_path) == old


def test_other_errors_keep_what_is_done(tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(StageError):
        write_and_fail(run, StageError("the disk is full"))
    assert run.data("a").read_text() == "new"


def test_a_file_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    started = time.monotonic()
    with pytest.raises(InputError, match="cannot write here"), run_lock(RunDir(tmp_path / "file" / "run")):
        pass
    assert time.monotonic() - started < 5


class Score(Sealed):
    name: str
    losses: list[float]
    counts: tuple[int, int]


def test_a_sealed_record_knows_when_its_file_is_damaged(tmp_path):
    score = Score(name="é", losses=[0.1, 1e-300, 3.0], counts=(1, 2))
    score.save(tmp_path / "x.json")
    assert Score.load(tmp_path / "x.json") == score
    text = (tmp_path / "x.json").read_text()
    for damaged in (text.replace("0.1", "0.3"), text.replace('"seal": "', '"seal": "0'), text.replace("é", "e")):
        assert damaged != text
        (tmp_path / "x.json").write_text(damaged)
        with pytest.raises(InputError, match="damaged: its content is not what was written"):
            Score.load(tmp_path / "x.json")
