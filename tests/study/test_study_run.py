"""A small study from end to end: equal tokens, shared cells, choices by validation, resuming, tables."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_study import write_study

from merit.base.errors import InputError, StageError
from merit.context import RunContext
from merit.evaluate.drift import general_texts
from merit.merge.average import merge_checkpoints
from merit.merge.ray import read_state
from merit.split.partition import Partition
from merit.study.compare import check_tokens, contenders
from merit.study.job import Job, SeedData, cell_mark, mergekit
from merit.study.measure import PointScores, Summary
from merit.study.run import run_init, run_job, run_study, summary, train_cells
from merit.study.spec import Study
from merit.study.tables import publish
from merit.train.spec import BranchResult, damaged_files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study, its summaries and its results."""
    folder = tmp_path_factory.mktemp("study")
    study = Study.open(write_study(folder), output=folder / "out")
    study.save()
    run_init(study.dir.root)
    found = [run_job(study.dir.root, seed, "half") for seed in (0, 1)]
    return study, found, publish(study)


def test_equal_tokens_by_the_logs(finished):
    study, found, _ = finished
    for item in found:
        counts = {name: result.supervised_tokens for name, result in item.methods.items()}
        logs = [
            BranchResult.load(path).supervised_tokens for path in study.dir.root.glob("baselines/*/branches/00/DONE")
        ]
        assert counts["joint"] in logs
        assert counts["joint"] == counts["random-2"] == counts["merit-1d"] == counts["merit-1d-regmean"]
        assert counts["soup-2"] == 2 * counts["joint"] == counts["joint-2ep"]


def test_unequal_tokens_are_refused(finished):
    study, found, _ = finished
    broken = found[0].model_copy(deep=True)
    broken.methods["merit-1d"] = broken.methods["merit-1d"].model_copy(update={"supervised_tokens": 1})
    with pytest.raises(StageError, match="merit-1d trained on 1 supervised tokens and joint on"):
        check_tokens(study.config.methods, [broken], "joint")


def test_cells_are_shared(finished):
    """One joint run serves joint training and the soup's first copy; MERIT's branches serve both of its merges."""
    study, _, _ = finished
    methods = study.config.methods
    for seed in (0, 1):
        data = _job(study, seed).data
        marks = {name: [cell_mark(spec) for spec in data.specs(method, 0.5)] for name, method in methods.items()}
        assert marks["soup-2"][0] == marks["joint"][0] != marks["soup-2"][1]
        assert marks["merit-1d"] == marks["merit-1d-regmean"]
        asked = [mark for found in marks.values() for mark in found]
        there = {path.parents[2].name for path in study.dir.root.glob("baselines/*/branches/00/DONE")}
        assert set(asked) <= there
        assert len(set(asked)) <= len(asked) - 1 - 2 * 2


def test_the_merge_is_the_engines(finished, tmp_path):
    study, found, _ = finished
    job = _job(study, 0)
    specs = job.data.specs(study.config.methods["merit-1d"], 0.5)
    cells = [job.train(spec) for spec in specs]
    tokens = [cell.result.supervised_tokens for cell in cells]
    folders = [cell.branch.checkpoint for cell in cells]
    step, distances = job.ray.mean(folders, tokens)
    merge = merge_checkpoints(folders, tokens, {1.5: tmp_path / "m"}, base=study.theta0.path)
    state = read_state(tmp_path / "m")
    for name, start in job.ray.theta0.items():
        torch.testing.assert_close(start + 1.5 * step[name], state[name], atol=1e-6, rtol=1e-5)
    assert distances == pytest.approx(merge.branch_displacement, rel=1e-5)
    point = next(p for p in found[0].methods["merit-1d"].points if p.scale == 1.5)
    assert point.distance == pytest.approx(merge.displacement["1.5"], rel=1e-4)


def test_validation_chooses(finished):
    _, found, _ = finished
    for result in found[0].methods.values():
        averages = [point.average for point in result.points]
        assert result.chosen == int(np.argmin(averages))
        assert result.points[result.plain].scale == 1
    regmean = found[0].methods["merit-1d-regmean"]
    assert {point.ridge for point in regmean.points} == {0.1, 1.0}


def test_a_ridge_of_ones_own_is_not_chosen(finished):
    """The same branches, the same ridge: the same model as validation had to choose from."""
    _, found, _ = finished
    for item in found:
        (firm,) = item.methods["merit-1d-firm"].points
        same = next(point for point in item.methods["merit-1d-regmean"].points if point.ridge == 1.0)
        assert (firm.ridge, firm.validation, firm.distance) == (1.0, same.validation, same.distance)


def test_validation_and_test_are_apart(finished):
    study, _, _ = finished
    examples = _job(study, 0).examples
    for chosen, reported in zip(examples.validation, examples.test, strict=True):
        assert (chosen.name, chosen.face) == (reported.name, reported.face)
        assert not {tuple(row.input_ids) for row in chosen.rows} & {tuple(row.input_ids) for row in reported.rows}


def test_what_retention_is_measured_on(finished):
    """The datasets to retain, θ0's own answers, and plain text, of which every token but the first counts."""
    study, _, _ = finished
    job = _job(study, 0)
    parts = {part.name: part.rows for part in job.examples.test if part.face == "retention"}
    assert set(parts) - {"drift"} == {"equations", "general text"}  # this θ0 answers too little for drift
    texts = general_texts(6)
    assert [job.data.context.tokenizer.decode(row.input_ids) for row in parts["general text"]] == texts[1::2]
    scores = PointScores.load(study.dir.point(job._mark("base"))).test.retention
    (text,) = (score for score in scores if score.name == "general text")
    assert text.tokens == [len(row.input_ids) - 1 for row in parts["general text"]]


def test_seeds_draw_their_own_data(finished):
    study, _, _ = finished
    first, second = (_job(study, seed).data.mixture for seed in (0, 1))
    assert [item.fingerprint for item in first.datasets] != [item.fingerprint for item in second.datasets]


def test_resumes_after_losses(finished):
    """A killed job has half of its files: what is left is used, and the numbers are the same."""
    study, found, _ = finished
    before = found[1]
    kept = before.methods["joint"].points
    study.dir.summary(1, "half").unlink()
    (study.dir.job(1, "half") / "methods" / "merit-1d.json").unlink()
    (study.dir.job(1, "half") / "methods" / "soup-2.json").write_text("{ half of it")
    study.dir.point(before.methods["merit-1d"].points[0].mark).unlink()
    job = _job(study, 1)
    spec = job.data.specs(study.config.methods["merit-1d"], 0.5)[0]
    branch = study.dir.cell(cell_mark(spec))
    branch.done.unlink()
    shutil.rmtree(branch.checkpoint)
    after = run_job(study.dir.root, 1, "half")
    assert after.methods["joint"].points == kept
    for name, result in before.methods.items():
        assert after.methods[name].points == result.points, name


def test_with_a_store_each_cell_is_a_branch_job(finished, tmp_path):
    """A cell that is gone comes back from `merit train STORE --method CELL`, as a run's branches do."""
    study, _, _ = finished
    launch = study.config.launch.model_copy(update={"store": f"{tmp_path}/store"})
    apart = Study(study.config.model_copy(update={"launch": launch}), study.base, study.dir)
    assert (apart.trains_apart, study.trains_apart) == (True, False)
    mark = cell_mark(SeedData(study, 0).specs(study.config.methods["joint"], 0.5)[0])
    cell = study.dir.cell(mark)
    before = BranchResult.load(cell.done)
    study.dir.summary(0, "half").rename(tmp_path / "summary.json")
    shutil.rmtree(cell.root)
    train_cells(apart, 0, "half")
    assert BranchResult.load(cell.done).supervised_tokens == before.supervised_tokens
    assert damaged_files(cell) == []
    assert (tmp_path / "store" / "out" / "baselines" / mark / "branches" / "00" / "DONE").is_file()
    (tmp_path / "summary.json").rename(study.dir.summary(0, "half"))


def test_a_damaged_cell_is_trained_again(finished):
    study, _, _ = finished
    job = _job(study, 1)
    spec = job.data.specs(study.config.methods["joint"], 0.5)[0]
    weights = study.dir.cell(cell_mark(spec)).checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\0")
    job.train(spec)
    assert weights.read_bytes() == whole


def test_a_seed_is_a_run(finished):
    """Every command reads it."""
    study, _, _ = finished
    context = RunContext.open(study.dir.seed(0).root)
    assert context.config.baselines == study.seed_run(0).config.baselines
    assert "partition" in context.run.report.read_text()
    assert Partition.load(context.run.method("random-1").partition).splitter == "random"


def test_a_finished_study_does_nothing(finished, monkeypatch):
    study, _, _ = finished
    monkeypatch.setattr("merit.jobs.engines.local.LocalExecutor.run", lambda self, jobs, progress: _nothing_to_do(jobs))
    assert run_study(study)


def test_results(finished):
    study, found, results = finished
    labels = [row.label for row in results.rows]
    assert labels[0] == "base"
    assert {"joint", "joint*", "best:joint", "merit-1d", "merit-1d*"} <= set(labels)
    assert "merit-1d-ties" not in labels or mergekit()
    base, joint = (next(row for row in results.rows if row.label == label) for label in ("base", "joint"))
    assert joint.faces["in_mixture"].value < base.faces["in_mixture"].value, "it has learned something"
    point = PointScores.load(study.dir.point(found[0].methods["joint"].points[1].mark))
    other = PointScores.load(study.dir.point(found[1].methods["joint"].points[1].mark))
    mean = (point.test.losses["in_mixture"] + other.test.losses["in_mixture"]) / 2
    assert joint.faces["in_mixture"].value == pytest.approx(mean, abs=1e-9)
    for item in results.comparisons:
        assert item.low <= item.difference <= item.high
        assert (item.verdict == "undecided") == (item.low <= 0 <= item.high)
        assert item.holm >= item.p
    for name in ("results.json", "tables.md", "table.tex", "results.html"):
        text = (study.dir.results / name).read_text()
        assert "merit-1d" in text
    assert "joint*" in contenders(study, found)
    assert json.loads(study.dir.table.read_text())["complete"] is True


def test_tables_of_an_unfinished_study(finished, tmp_path, monkeypatch):
    """A job that was stopped counts with the methods that it has measured, unless it would take too many from all."""
    study = Study.open(shutil.copytree(finished[0].dir.root, tmp_path / "study"))
    study.dir.summary(1, "half").unlink()
    names = list(study.config.methods)
    measured, stop = Job._method, "merit-1d-regmean"
    later = names[names.index(stop) :]

    def until(job, name, method, specs):
        if name == stop:
            raise StageError("stopped")
        return measured(job, name, method, specs)

    monkeypatch.setattr(Job, "_method", until)
    with pytest.raises(StageError, match="stopped"):
        run_job(study.dir.root, 1, "half")
    results = publish(study)
    assert "<p><strong>Unfinished</strong>: some" in (study.dir.results / "results.html").read_text()
    assert (results.complete, results.seeds) == (False, [0, 1])
    assert {row.method for row in results.rows} == {None, *names} - set(later)
    missing = ", ".join(name for name in later if name not in results.skipped)
    assert f"Budget half: not measured in all of these seeds, and left out: {missing}." in results.notes
    shutil.rmtree(study.dir.job(1, "half"))
    stop = names[1]
    with pytest.raises(StageError, match="stopped"):
        run_job(study.dir.root, 1, "half")
    results = publish(study)
    assert results.seeds == [0]
    assert stop in {row.method for row in results.rows}
    assert "Budget half: 1 of 2 seeds so far." in results.notes
    assert results.seeds_of("half") == [0]
    monkeypatch.undo()
    run_job(study.dir.root, 1, "half")
    assert not study.dir.so_far(1, "half").exists()
    assert publish(study).complete


def test_the_question_is_answered(finished):
    _, _, results = finished
    assert [item.variant for item in results.answers][:2] == ["raw", "disattenuated"]
    for item in results.answers:
        assert -1 <= item.rank.value <= 1
        assert item.centred.low <= item.centred.value <= item.centred.high


def test_unknown_parts_are_named(finished):
    study, _, _ = finished
    with pytest.raises(InputError, match="no budget 'huge'; there are half"):
        run_study(study, budgets=["huge"])
    with pytest.raises(InputError, match="no seed 7; there are 0, 1"):
        run_study(study, seeds=[7])
    with pytest.raises(InputError, match="in this study"):
        run_job(study.dir.root, 7, "half")


def test_another_configuration_is_another_study(finished):
    study, found, _ = finished
    assert summary(study, 0, "half") == Summary.load(study.dir.summary(0, "half")) == found[0]
    changed = Study(study.config.model_copy(update={"centre": False}), study.base, study.dir)
    assert summary(changed, 0, "half") is None


def _job(study, seed):
    from merit.study.job import Job

    return Job(study, seed, "half")


def _nothing_to_do(jobs):
    assert all(job.done.exists() for job in jobs)
