"""Scores that travel: another machine does not measure them again, unless they would come out otherwise."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from test_study_rounds import FORMS, study_of
from typer.testing import CliRunner

from merit.base.errors import InputError
from merit.cli.main import app
from merit.study.job import Job
from merit.study.results import Results
from merit.study.run import run_job, summary, summary_so_far
from merit.study.scores import MethodScores, SeedScores, _placeless, adopt_scores, export_scores, tell_measured_again
from merit.study.spec import Study
from merit.study.tables import publish

METHODS = """methods:
  joint: {splitter: single, scales: [0.5, 1.0]}
  merit-1d: {splitter: pca, axes: 1, also: [actmat]}
  rounds-2: {splitter: pca, axes: 1, rounds: 2}"""
DATA = """mixture:
  sums: {path: sums.jsonl}
  spell: {path: "reasoning_gym:spell_backward", max_examples: 24}
  gcd: {path: "reasoning_gym:gcd", max_examples: 24}"""


def answer(number: int) -> str:
    return "odd" if (number + number // 2) % 2 else "even"


def sums(first: int) -> str:
    rows = [{"prompt": f"{i} + {i // 2} is", "completion": answer(i)} for i in range(first, first + 24)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def place(folder: Path, model: Path, methods: str = METHODS, **changes: str) -> Study:
    """The study in a folder of its own, with θ0 and a file of data beside it."""
    folder.mkdir()
    shutil.copytree(model, folder / "theta0")
    (folder / "sums.jsonl").write_text(sums(10))
    study = study_of(folder, methods, **changes)
    file = folder / "study.yaml"
    lines = file.read_text().split("\n")
    start, stop = lines.index("warmup:"), lines.index("mixture:")
    end = next(i for i in range(stop + 1, len(lines)) if not lines[i].startswith(" "))
    file.write_text("\n".join([*lines[:start], "model: theta0", *DATA.split("\n"), *lines[end:]]))
    study = Study.open(file, output=folder / "out")
    study.save()
    return study


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_model):
    """A finished study, its summary, and the folder that its scores are in."""
    study = place(tmp_path_factory.mktemp("first") / "here", tiny_model)
    found = run_job(study.dir.root, 0, "whole")
    folder = study.base / "scores"
    assert export_scores(study, folder) == len(found.methods) == 4
    return study, found, folder


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO)
    return lambda: " | ".join(record.getMessage() for record in caplog.records if "scores" in record.name)


def test_another_machine_measures_nothing_again(measured, tmp_path, tiny_model, monkeypatch):
    """θ0 and the data lie elsewhere; the tables are the same."""
    study, found, folder = measured
    other = place(tmp_path / "there", tiny_model)
    adopt_scores(other, folder)
    after = summary(other, 0, "whole")
    assert after is not None
    assert after.methods == found.methods
    monkeypatch.setattr(Job, "train", lambda self, spec: pytest.fail("trained"))
    monkeypatch.setattr("merit.study.job.measure", lambda *a, **k: pytest.fail("measured"))
    other.dir.summary(0, "whole").unlink()
    assert run_job(other.dir.root, 0, "whole").methods == found.methods, "the job itself believes every one of them"
    here, there = publish(study), publish(other)
    assert there.model_dump(exclude={"machine"}) == here.model_dump(exclude={"machine"})
    assert there.complete
    rows = {row.label: row.choice for row in there.rows}
    assert all(set(choice) == {"in_mixture"} for choice in rows.values()), "odd or even; the others are free answers"
    assert rows["joint"]["in_mixture"].value in [k / 4 for k in range(5)]
    assert "choice, in-mixture" in (other.dir.results / "tables.md").read_text()
    assert not [*other.dir.root.rglob("*.safetensors")]


def test_only_what_is_missing_is_trained(measured, tmp_path, tiny_model):
    """Another merge needs the branches again, and those alone."""
    _, found, folder = measured
    more = METHODS.replace("[actmat]", "[actmat, regmean]")
    other = place(tmp_path / "there", tiny_model, more)
    used = adopt_scores(other, folder)
    assert set(used[0, "whole"]) == set(found.methods)
    assert set(summary_so_far(other, 0, "whole").methods) == set(found.methods)
    after = run_job(other.dir.root, 0, "whole")
    assert set(after.methods) - set(found.methods) == {"merit-1d-regmean"}
    assert {name: after.methods[name] for name in found.methods} == found.methods
    assert len([*other.dir.root.glob("baselines/*/branches/*/DONE")]) == 2
    again = other.base / "scores"
    export_scores(other, again)
    (path,) = again.rglob("merit-1d-actmat.json")
    assert path.read_bytes() == next(folder.rglob("merit-1d-actmat.json")).read_bytes()


def test_scores_of_other_settings_are_not_used(measured, tmp_path, tiny_model, told):
    _, _, folder = measured
    fast = FORMS["train"].replace("3e-3", "4e-3")
    assert adopt_scores(place(tmp_path / "fast", tiny_model, train=fast), folder, verify=False) == {}
    assert "not used: joint, merit-1d, merit-1d-actmat and rounds-2 (other here: train)" in told()
    other = METHODS.replace("[0.5, 1.0]", "[0.7, 1.0]").replace("rounds-2:", "twice:")
    used = adopt_scores(place(tmp_path / "scales", tiny_model, other), folder, verify=False)
    assert set(used[0, "whole"]) == {"merit-1d", "merit-1d-actmat"}
    assert "not used: joint (other here: methods.joint)" in told()
    assert "not used: rounds-2 (no method of this study)" in told()
    half = place(tmp_path / "half", tiny_model, budgets="budgets: {whole: 0.5}")
    assert adopt_scores(half, folder, verify=False) == {}
    assert "(other here: budgets.whole)" in told()


def test_scores_of_other_data_are_not_used(measured, tmp_path, tiny_model, told):
    study, _, folder = measured
    other = place(tmp_path / "there", tiny_model)
    (other.base / "sums.jsonl").write_text(sums(50))
    assert adopt_scores(other, folder) == {}
    assert f"{folder / 'seed-0'}: not used: the data are others here: sums" in told()
    assert summary_so_far(other, 0, "whole") is None
    with pytest.raises(InputError, match="nothing to export"):
        export_scores(other, tmp_path / "none")
    base = SeedScores.load(folder / "seed-0" / "seed.json").base
    copy = shutil.copytree(folder, tmp_path / "scores")
    seed = SeedScores.load(copy / "seed-0" / "seed.json")
    seed.model_copy(update={"base": base.model_copy(update={"mark": "0" * 16})}).save(copy / "seed-0" / "seed.json")
    with pytest.raises(InputError, match="scores of this seed on other data"):
        export_scores(study, copy)


def test_tables_need_no_data(measured, tmp_path, tiny_model):
    """The scores alone make the tables; a study that then runs compares the data first."""
    study, _, folder = measured
    other = place(tmp_path / "there", tiny_model)
    (other.base / "sums.jsonl").unlink()
    shutil.copytree(folder, other.base / "scores")
    done = CliRunner().invoke(app, ["study", str(other.base / "study.yaml"), "-o", str(other.dir.root), "--tables"])
    assert done.exit_code == 0, done.output
    assert Results.load(other.dir.table).rows == publish(study).rows
    assert Results.load(other.dir.table).complete
    assert summary(other, 0, "whole") is None
    (other.base / "sums.jsonl").write_text(sums(10))
    adopt_scores(other, other.base / "scores")
    assert summary(other, 0, "whole") is not None


def test_where_a_file_lies_decides_nothing():
    """It is found beside the study file, or it is not there at all."""
    for path in ("/home/me/mixture/sums.jsonl", "data/mixture/sums.jsonl", "sums.jsonl"):
        assert _placeless({"path": path, "weight": 2}) == {"path": "sums.jsonl", "weight": 2}
    for path in ("org/name", "reasoning_gym:gcd"):
        assert _placeless({"path": path}) == {"path": path}


def test_what_a_job_measures_again_is_told(measured, tmp_path, tiny_model, told):
    """Its own groups decide: another machine's cosines may cut otherwise."""
    _, found, folder = measured
    copy = shutil.copytree(folder, tmp_path / "scores")
    path = copy / "seed-0" / "whole" / "joint.json"
    scores = MethodScores.load(path)
    scores.model_copy(update={"result": scores.result.model_copy(update={"mark": "0" * 16})}).save(path)
    other = place(tmp_path / "there", tiny_model)
    used = adopt_scores(other, copy)
    other.dir.summary(0, "whole").unlink()
    assert run_job(other.dir.root, 0, "whole").methods["joint"].points == found.methods["joint"].points
    tell_measured_again(other, used)
    assert "seed 0, whole: measured again, since the groups are others here: joint" in told()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace('"losses":[', '"losses":[1', 1), "its record is damaged"),
        (lambda text: text[: len(text) // 2], "its record is damaged"),
    ],
)
def test_damaged_scores_are_not_used(measured, tmp_path, tiny_model, told, change, why):
    _, _, folder = measured
    copy = shutil.copytree(folder, tmp_path / "scores")
    path = copy / "seed-0" / "whole" / "merit-1d.json"
    path.write_text(change(path.read_text()))
    used = adopt_scores(place(tmp_path / "there", tiny_model), copy, verify=False)
    assert "merit-1d" not in used[0, "whole"]
    assert f"not used: merit-1d ({why})" in told()
    (copy / "seed-0" / "seed.json").write_text("{}")
    assert adopt_scores(place(tmp_path / "later", tiny_model), copy, verify=False) == {}
    assert "not used: seed.json is damaged" in told()


def test_a_name_leads_nowhere(measured, tmp_path):
    """A point is a file's name: no stranger's record chooses another."""
    scores = MethodScores.load(next(measured[2].rglob("merit-1d.json")))
    point = scores.points[0].model_copy(update={"mark": "../../x"})
    result = scores.result.points[0].model_copy(update={"mark": "../../x"})
    path = tmp_path / "merit-1d.json"
    changes = {"points": [point], "result": scores.result.model_copy(update={"points": [result]})}
    scores.model_copy(update=changes).save(path)
    with pytest.raises(InputError, match="other points than its results name"):
        MethodScores.load(path)


def test_points_of_an_earlier_version(measured, tmp_path):
    """They do not say what was chosen: tables have no such column, and the rest travels."""
    study = Study.open(shutil.copytree(measured[0].dir.root, tmp_path / "study"))
    for path in (study.dir.root / "points").glob("*.json"):
        found = json.loads(path.read_text())
        assert found.pop("chosen") or found["test"] is None
        path.write_text(json.dumps(found))
    results = publish(study)
    assert all(row.choice == {} for row in results.rows)
    assert "choice" not in (study.dir.results / "tables.md").read_text()
    assert export_scores(study, tmp_path / "scores") == 4


def test_export_by_the_command(measured, tmp_path):
    study, _, _ = measured
    out = ["-o", str(study.dir.root)]
    done = CliRunner().invoke(
        app, ["study", str(study.base / "study.yaml"), *out, "--export", str(tmp_path / "scores")]
    )
    assert done.exit_code == 0, done.output
    assert "the scores of 4 methods" in " ".join(done.output.split())
    names = [path.relative_to(tmp_path / "scores").as_posix() for path in (tmp_path / "scores").rglob("*.json")]
    methods = [f"seed-0/whole/{name}.json" for name in ("joint", "merit-1d", "merit-1d-actmat", "rounds-2")]
    assert set(names) == {"seed-0/seed.json", *methods}
    gone = str(tmp_path / "gone")
    done = CliRunner().invoke(app, ["study", str(study.base / "study.yaml"), *out, "--scores", gone])
    assert isinstance(done.exception, InputError)


def test_a_changed_study_says_what_it_leaves_out(measured, tmp_path, told):
    study, _, _ = measured
    file = tmp_path / "study.yaml"
    text = (
        (study.base / "study.yaml")
        .read_text()
        .replace("\nmethods:", "\nmethods:\n  random-2: {splitter: random, axes: 1}")
    )
    file.write_text(text)
    for name in ("sums.jsonl", "theta0"):
        (tmp_path / name).symlink_to(study.base / name)
    changed = Study.open(file, output=study.dir.root)
    with pytest.raises(InputError, match="nothing to export"):
        export_scores(changed, tmp_path / "scores")
    assert "seed 0, whole: left out, the study has changed since" in told()
