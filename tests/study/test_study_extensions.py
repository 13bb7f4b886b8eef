"""A study with merge rules that lie beside it, in a folder `merit_ext` on the Python path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import write_study

ROOT = Path(__file__).parents[2]
METHODS = """methods:
  joint: {splitter: single}
  merit-1d: {splitter: pca, axes: 1, also: [two_sided, {rule: actmat_embedding, ridge: 0.3}]}
  merit-1d-tsv: {branches: merit-1d, merge: tsv, scales: [0.5, 1.0]}
"""


def merit(*arguments: object, beside: Path) -> subprocess.CompletedProcess[str]:
    """Runs merit, with the rules of the folder `beside` where Python finds them."""
    path = os.pathsep.join(map(str, (beside, ROOT / "src")))
    return subprocess.run(
        [sys.executable, "-m", "merit", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The file of a tiny study that has run."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(ROOT / "studies" / "real" / "merit_ext", folder / "merit_ext")
    file = write_study(folder, seeds="seeds: [0]")
    file.write_text(file.read_text().split("methods:\n")[0] + METHODS)
    again(file)
    return file


def again(study):
    """Runs what is missing; returns the methods whose results were written."""
    folder = study.parent / "out" / "jobs" / "0-half" / "methods"
    before = {file.stem: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    done = merit("study", study, "-o", study.parent / "out", beside=study.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(file.stem for file in folder.glob("*.json") if before.get(file.stem) != file.stat().st_mtime_ns)


def results(study):
    """Method → its results."""
    folder = study.parent / "out" / "jobs" / "0-half" / "methods"
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_every_rule_is_a_method_on_the_same_branches(study):
    found = results(study)
    assert set(found) == {"joint", "merit-1d", "merit-1d-two_sided", "merit-1d-actmat_embedding", "merit-1d-tsv"}
    for name in set(found) - {"joint"}:
        assert found[name]["groups"] == found["merit-1d"]["groups"]
        assert found[name]["branch_distance"] == pytest.approx(found["merit-1d"]["branch_distance"], rel=1e-4)
    assert len({point["mark"] for item in found.values() for point in item["points"]}) == 6
    assert len({item["points"][item["plain"]]["average"] for item in found.values()}) == 5
    assert len(list((study.parent / "out" / "baselines").glob("*/branches/00/DONE"))) == 3
    table = (study.parent / "out" / "results" / "tables.md").read_text()
    assert r"| merit-1d-two\_sided | joint |" in table


def test_validation_chooses_its_scale(study):
    found = results(study)["merit-1d-tsv"]
    averages = [point["average"] for point in found["points"]]
    assert [point["scale"] for point in found["points"]] == [0.5, 1.0]
    assert found["chosen"] == averages.index(min(averages))


def test_a_further_run_measures_what_changed_alone(study):
    assert again(study) == []
    study.write_text(study.read_text().replace("ridge: 0.3", "ridge: 0.2"))
    assert again(study) == ["merit-1d-actmat_embedding"]


def test_an_edited_rule_is_another_rule(study):
    before = results(study)["merit-1d-tsv"]["points"]
    file = study.parent / "merit_ext" / "rules" / "tsv.py"
    file.write_text(file.read_text().replace("min(of.size) // count", "1"))
    assert again(study) == ["merit-1d-tsv"]
    after = results(study)["merit-1d-tsv"]["points"]
    assert all(one["distance"] > other["distance"] for one, other in zip(before, after, strict=True))


def test_without_its_folder_a_rule_is_unknown(study, tmp_path):
    done = merit("study", study, "-o", tmp_path / "out", beside=tmp_path)
    assert done.returncode == 2
    assert "two_sided" in done.stderr
    assert "Traceback" not in done.stderr
