"""Methods that are trained in rounds: what they move through, that they resume, and that no other cell changes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_study import write_study

from merit.base.errors import InputError, Problems
from merit.base.files import sweep_parts
from merit.base.record import fingerprint
from merit.base.words import data_size
from merit.config.launch import LaunchConfig
from merit.config.sections import ModelConfig, TrainConfig
from merit.config.study import MethodConfig, StudyConfig
from merit.context import RunContext
from merit.jobs.job import Job as LaunchedJob
from merit.merge.average import merge_checkpoints
from merit.run.layout import BranchDir
from merit.split.partition import Partition
from merit.split.splitters.random import random_partition
from merit.study.cells import RoundsCell, cell_marks
from merit.study.compare import describe
from merit.study.job import Job, SeedData, scaled
from merit.study.measure import PointScores
from merit.study.run import run_init, run_job, train_cells
from merit.study.spec import Study
from merit.study.tables import main_table, publish, wall_clock_tables
from merit.train.branch import train_branch
from merit.train.spec import BranchData, BranchResult, BranchSpec

METHODS = """methods:
  joint: {splitter: single}
  merit-1d: {splitter: pca, axes: 1, also: [actmat]}
  rounds-2: {splitter: pca, axes: 1, rounds: 2, merge: actmat}
  rounds-3: {splitter: pca, axes: 1, rounds: 3}
  joint-2x: {splitter: single, machines: 2, pool: joint-2x}
  joint-2x-fast: {splitter: single, machines: 2, rate: 2, pool: joint-2x}"""
KEYS = ("step", "loss", "learning_rate")
TRAIN = "learning_rate: 3e-3, batch_tokens: 80, max_length: 160, precision: fp32"
FORMS = {
    "question": "",
    "unseen": "unseen: {}",
    "seeds": "seeds: [0]",
    "budgets": "budgets: {whole: 1.0}",
    "train": f"train: {{{TRAIN}}}",
}


def study_of(folder: Path, methods: str = METHODS, **changes: str) -> Study:
    """The tiny study with these methods alone."""
    file = write_study(folder, **{**FORMS, **changes})
    head = file.read_text().split("methods:\n")[0]
    file.write_text(f"{head}{methods}\n")
    return Study.open(file, output=folder / "out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = study_of(tmp_path_factory.mktemp("rounds"))
    study.save()
    run_init(study.dir.root)
    return study, run_job(study.dir.root, 0, "whole")


def cell_of(study: Study, name: str) -> RoundsCell:
    method, job = study.config.methods[name], Job(study, 0, "whole")
    return RoundsCell.of(job.cell_run, method, job.data.partition(method), job.data.specs(method, 1.0))


def groups(partition: Partition) -> list[list[str]]:
    return [group.datasets for group in partition.groups]


def weights_of(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.safetensors"))}


def test_each_round_goes_on_from_the_merge_before(finished, tmp_path):
    study, found = finished
    cell, joint = cell_of(study, "rounds-2"), found.methods["joint"]
    first, last = cell.method.before[0].dir, cell.method.dir
    for k in (0, 1):
        specs = [BranchSpec.load(home.branch(k).spec) for home in (first, last)]
        assert [(spec.round, spec.train.rounds) for spec in specs] == [(1, 2), (2, 2)]
        assert study.dir.root / specs[1].model.path == first.merged()
        one, two = (BranchResult.load(home.branch(k).done) for home in (first, last))
        assert one.steps == round(two.steps / 2)
        assert 0 < one.supervised_tokens < two.supervised_tokens
    result = found.methods["rounds-2"]
    assert result.supervised_tokens == joint.supervised_tokens
    assert result.steps == found.methods["merit-1d"].steps

    # The last merge, by the engine itself: actmat's steps are taken from what the last round started from.
    tokens = [BranchResult.load(last.branch(k).done).supervised_tokens for k in (0, 1)]
    merge = merge_checkpoints(
        [last.branch(k).checkpoint for k in (0, 1)],
        tokens,
        {1.0: tmp_path / "m"},
        base=study.theta0.path,
        rule="actmat",
        start=first.merged(),
        dtype="float32",
    )
    job = Job(study, 0, "whole")
    point = PointScores.load(study.dir.point(result.points[0].mark))
    again = job._point(job.ray.set(job.ray.step(tmp_path / "m")), "again", test=True)
    assert again.test == point.test
    assert result.branch_distance == pytest.approx(merge.branch_displacement)
    assert again.test.losses != PointScores.load(study.dir.point(result.between[0].mark)).test.losses


def test_the_cut_alone_changes_nothing(finished):
    """The first part of a branch in rounds is the beginning of the branch that is trained at once: the same rows, the
    same rates."""
    study, _ = finished
    once = Job(study, 0, "whole").data.specs(study.config.methods["merit-1d"], 1.0)
    cell = cell_of(study, "rounds-3")
    for k, spec in enumerate(once):
        whole = study.dir.cell(fingerprint(spec)).log.read_text().splitlines()
        part = cell.method.before[0].dir.branch(k).log.read_text().splitlines()
        assert len(part) < len(whole)
        begun, cut = ([[json.loads(line)[key] for key in KEYS] for line in lines] for lines in (whole, part))
        assert begun[: len(cut)] == cut


def test_the_merge_after_every_round_is_a_row(finished):
    study, found = finished
    results = publish(study)
    rows = {row.label: row for row in results.rows}
    assert [label for label in rows if label.startswith("rounds-3")] == ["rounds-3@1", "rounds-3@2", "rounds-3"]
    assert [rows[f"rounds-3@{r}"].passes for r in (1, 2)] == pytest.approx([1 / 3, 2 / 3])
    assert rows["rounds-3@1"].supervised_tokens == round(rows["rounds-3"].supervised_tokens / 3)
    point = PointScores.load(study.dir.point(found.methods["rounds-3"].between[0].mark))
    assert rows["rounds-3@1"].faces["in_mixture"].value == pytest.approx(point.test.losses["in_mixture"])
    against = {item.b for item in results.comparisons if item.a == "rounds-2"}
    assert {"joint", "merit-1d", "merit-1d-actmat"} <= against


def test_bytes_are_those_of_checkpoints_and_of_gradients(finished):
    """Two branches, so that joint training counts on two machines."""
    study, found = finished
    results = publish(study)
    rows = {row.label: row for row in results.rows}
    size, steps, big = 4 * found.parameters, *(found.methods[name].steps[0] for name in ("joint", "joint-2x"))
    assert {label: row.bytes_moved for label, row in rows.items()} == {
        "base": None,
        "joint": 2 * size * steps,
        "joint-2x": 2 * size * big,
        "joint-2x-fast": 2 * size * big,
        "best:joint-2x": 2 * size * big,
        "merit-1d": 2 * size,
        "merit-1d-actmat": 2 * size,
        "rounds-2@1": 2 * size,
        "rounds-2": 6 * size,
        "rounds-3@1": 2 * size,
        "rounds-3@2": 6 * size,
        "rounds-3": 10 * size,
    }
    tables = (study.dir.results / "tables.md").read_text()
    assert f"| {data_size(10 * size)} |" in tables
    assert "2 machines all-reduce" in tables
    drawn = (study.dir.results / "bytes-whole.svg").read_text()
    assert all(name in drawn for name in ("bytes moved", "rounds-3", "joint"))
    assert "bytes-whole.svg" not in tables
    assert drawn[drawn.index("<svg") :] in (study.dir.results / "results.html").read_text()


def test_equal_wall_clock_is_a_table_of_its_own(finished):
    """Joint training with twice the batch takes as many steps as one of two branches, and sees all tokens."""
    study, found = finished
    methods = found.methods
    assert methods["joint-2x"].supervised_tokens == methods["joint"].supervised_tokens
    assert methods["joint-2x"].steps[0] == pytest.approx(methods["joint"].steps[0] / 2, abs=1)
    assert methods["joint-2x"].steps[0] == pytest.approx(max(methods["merit-1d"].steps), abs=2)
    results = publish(study)
    equal_tokens = [row[0] for row in main_table(results, "whole")]
    assert "joint" in equal_tokens
    assert not {"joint-2x", "joint-2x-fast", "best:joint-2x"} & set(equal_tokens)
    (machines, table), *more = wall_clock_tables(results, "whole")
    assert (machines, more) == (2, [])
    assert [row[0] for row in table[1:]] == [
        *("merit-1d", "merit-1d-actmat", "rounds-2", "rounds-3", "joint-2x", "joint-2x-fast", "best:joint-2x")
    ]
    assert table[0][:2] == ["method", "steps"]
    assert table[5][1] == str(methods["joint-2x"].steps[0])
    assert "### Equal wall clock on 2 machines" in (study.dir.results / "tables.md").read_text()
    assert "best:joint-2x" in {item.b for item in results.comparisons if item.a == "rounds-2"}


def test_a_draw_of_random_groups_is_the_splitters_at_another_seed(finished):
    study, _ = finished
    methods = {str(n): MethodConfig(splitter="random", draw=n) for n in range(1, 9)}
    config = study.config.model_copy(update={"methods": {**study.config.methods, **methods}})
    data = SeedData(Study(config, study.base, study.dir), 0)
    sizes = data.mixture.planned_examples
    found = [data.partition(item) for item in methods.values()]
    wanted = [random_partition(sizes, r=1, seed=1_000_003 * n, balance="samples") for n in range(8)]
    assert [groups(item) for item in found] == [groups(item) for item in wanted]
    assert len({str(groups(item)) for item in found}) > 1


def test_a_killed_round_resumes_and_no_round_is_trained_twice(finished, tmp_path):
    """Killed again and again, wherever it is, the job ends with the bits of the undisturbed one."""
    study, found = finished
    cell = cell_of(study, "rounds-3")
    before = weights_of(cell.method.dir.root)
    home = study.dir.job(0, "whole")
    for file in (study.dir.summary(0, "whole"), home / "methods" / "rounds-3.json"):
        file.rename(tmp_path / file.name)
    cell.method.dir.root.rename(tmp_path / "cell")
    command = [sys.executable, "-m", "merit", "study", str(study.dir.root), "--job", "0:whole"]
    first = cell.method.before[0].dir
    struck = 0
    for sign in (first.branch(0).done, cell.method.before[1].dir.branch(0).done):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not sign.exists() and process.poll() is None:
            time.sleep(0.02)
        struck += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert struck == 2
    kept = {file: file.stat().st_mtime_ns for file in (first.branch(0).done, first.merge_record)}
    sweep_parts(study.dir.run.baselines)  # as `merit study` does: what was half written when it was killed
    after = run_job(study.dir.root, 0, "whole")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    found_again = weights_of(cell.method.dir.root)
    assert sorted(found_again) == sorted(before)
    assert found_again == before
    assert after.methods["rounds-3"].points == found.methods["rounds-3"].points


@pytest.mark.parametrize("harm", ["a damaged merge", "a lost result", "a damaged branch"])
def test_what_is_damaged_is_made_again(finished, harm):
    study, _ = finished
    cell = cell_of(study, "rounds-2")
    before = weights_of(cell.method.dir.root)
    last = cell.method.dir.branch(1)
    if harm == "a lost result":  # the state that it went on from is gone, too
        last.done.unlink()
    else:
        place = last.checkpoint if harm == "a damaged branch" else cell.method.before[0].dir.merged()
        file = place / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4] + b"\0\1\0\1")
    job = Job(study, 0, "whole")
    job.train_rounds(study.config.methods["rounds-2"], job.data.specs(study.config.methods["rounds-2"], 1.0))
    assert weights_of(cell.method.dir.root) == before


def test_weights_that_nothing_needs_are_removed(finished):
    study, _ = finished
    lean = Study(study.config.model_copy(update={"keep": "none"}), study.base, study.dir)
    cell = cell_of(study, "rounds-2")
    before = weights_of(cell.method.dir.root)
    job = Job(lean, 0, "whole")
    method = study.config.methods["rounds-2"]
    specs = job.data.specs(method, 1.0)
    job.drop_weights(*cell_marks(method, specs))
    assert weights_of(cell.method.dir.root) == {}
    job.train_rounds(method, specs)  # asked for again, they are trained again
    assert weights_of(cell.method.dir.root) == before


def test_where_launch_says_so_each_branch_of_a_round_is_a_branch_job(finished, tmp_path, monkeypatch):
    """Two rounds of jobs, each after the merge of the one before. What a job does, this process does here."""
    study, _ = finished
    cell = cell_of(study, "rounds-2")
    before = weights_of(cell.method.dir.root)
    apart = Study(
        study.config.model_copy(update={"launch": LaunchConfig(processes=2, retries=0)}), study.base, study.dir
    )
    asked: list[list[str]] = []

    def run_here(context: RunContext, jobs: list[tuple[BranchDir, LaunchedJob]]) -> None:
        asked.append([job.name.removeprefix(f"{cell.method.name} ") for _, job in jobs])
        for branch, job in jobs:
            number = int(job.command[job.command.index("--round") + 1]) if "--round" in job.command else 2
            home = cell.method.before[0].dir if number == 1 else cell.method.dir
            assert branch == home.branch(int(job.command[job.command.index("--branch") + 1]))
            train_branch(context.run, branch, base=context.run.root)

    monkeypatch.setattr("merit.train.step.run_jobs", run_here)
    study.dir.summary(0, "whole").rename(tmp_path / "summary.json")
    cell.method.dir.root.rename(tmp_path / "cell")
    train_cells(apart, 0, "whole")
    (tmp_path / "summary.json").rename(study.dir.summary(0, "whole"))
    assert [names for names in asked if names] == [[f"branch {k} round {r} of 2" for k in (0, 1)] for r in (1, 2)]
    assert weights_of(cell.method.dir.root) == before


def test_an_edited_rule_of_ones_own_is_another_cell(monkeypatch):
    method = MethodConfig(splitter="pca", rounds=2, merge="actmat")
    assert cell_marks(method, []) == [fingerprint("rounds", [], "actmat", None)]
    monkeypatch.setattr("merit.base.extensions.marks", lambda kind, name: ("of its file",))
    assert cell_marks(method, []) == [fingerprint("rounds", [], "actmat", None, "of its file")]


def test_cells_that_are_there_keep_their_names():
    """As merit named them before there were rounds: finished studies stay finished."""
    spec = BranchSpec(
        method="study",
        branch=0,
        model=ModelConfig(path="embedded:smollm2-135m"),
        model_fingerprint="0" * 16,
        train=scaled(TrainConfig(learning_rate=5e-5, batch_tokens=700), MethodConfig(splitter="pca", rate=2)),
        data=[BranchData(name="boolq", data="seeds/1/data/boolq.arrow", weight=0.25, fingerprint="1" * 16)],
        max_length=384,
        planned_tokens=1000,
        seed=1000,
    )
    assert cell_marks(MethodConfig(splitter="pca"), [spec]) == ["75d3338d2dc325d6"]


WRONG = {
    "x: {splitter: single, rounds: 2}": ("methods.x.rounds", "joint training and soups have none"),
    "x: {splitter: replicate, copies: 2, rounds: 2}": ("methods.x.rounds", "joint training and soups have none"),
    "x: {splitter: pca, rounds: 2, merge: regmean}": ("methods.x.rounds", "`regmean` merges once"),
    "x: {splitter: pca, rounds: 2, merge: ties}": ("methods.x.rounds", "`ties` merges once"),
    "x: {splitter: pca, machines: 2}": ("methods.x.machines", "only joint training (`single`) runs data-parallel"),
    "x: {splitter: single, machines: 2, pool: p}\n  y: {splitter: single, pool: p}": (
        "methods.y.pool",
        "train on another number of machines",
    ),
    "x: {splitter: pca, rounds: 0}": ("methods.x.rounds", "greater than or equal to 1"),
    "x: {splitter: pca, rounds: 2, also: [actmat]}": ("methods.x.also", "give every rule a method with `rounds`"),
    "x: {splitter: pca, rounds: 2}\n  y: {branches: x}": ("methods.y.branches", "give every rule a method"),
    "x: {splitter: pca}\n  y: {branches: x, rounds: 2}": ("methods.y.rounds", "are trained already"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_field(text, tmp_path):
    field, says = WRONG[text]
    with pytest.raises(InputError) as caught:
        study_of(tmp_path, f"methods:\n  joint: {{splitter: single}}\n  {text}")
    problems = caught.value.problems if isinstance(caught.value, Problems) else [caught.value]
    assert problems[0].field == field
    assert says in problems[0].message


def test_rounds_are_a_methods_own(tmp_path):
    with pytest.raises(InputError, match=r"`train.rounds`: in a study each method has its own"):
        study_of(tmp_path, train=f"train: {{{TRAIN}, rounds: 2}}")
    with pytest.raises(InputError, match=r"`train.carry_optimizer`: in a study each method has its own"):
        study_of(tmp_path, train=f"train: {{{TRAIN}, carry_optimizer: false}}")


def test_a_fresh_optimizer_a_round_is_another_training():
    carried = MethodConfig(splitter="pca", rounds=2)
    fresh = MethodConfig(splitter="pca", rounds=2, carry_optimizer=False)
    assert carried.training != fresh.training
    recipe = TrainConfig()
    assert fingerprint(scaled(recipe, carried)) != fingerprint(scaled(recipe, fresh))
    assert fingerprint(scaled(recipe, carried)) == fingerprint(recipe.model_copy(update={"rounds": 2}))
    with pytest.raises(ValidationError, match="one round has no merge to carry"):
        MethodConfig(splitter="pca", carry_optimizer=False)


def test_a_warm_up_has_no_rounds():
    small = {"mixture": {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}, "warmup": {"train": {"rounds": 2}}}
    with pytest.raises(ValidationError, match="a warm-up trains one branch"):
        StudyConfig.model_validate(small)


def test_two_rules_are_two_trainings(tmp_path):
    methods = study_of(tmp_path).config.methods
    assert methods["rounds-2"].training != methods["rounds-2"].model_copy(update={"merge": "tokens"}).training
    assert methods["rounds-2"].training != methods["merit-1d"].training == methods["merit-1d-actmat"].training
    assert describe(methods["rounds-2"]) == "MERIT, 2 groups, actmat merge, 2 rounds"
