"""Several merges of one set of branches in a study: `branches`, `merge: {rule, ridge}` and `also`."""

from __future__ import annotations

import pytest
import yaml
from tiny_study import write_study

from merit.base.errors import InputError, Problems
from merit.config.study import StudyConfig
from merit.config.yaml import load_section
from merit.study.compare import describe
from merit.study.spec import Study

METHODS = """methods:
  joint: {splitter: single}
  merit-1d: {splitter: pca, axes: 1, epochs: 2, also: [regmean, {rule: fisher, ridge: 0.3}], scales: [1.0, 1.5]}
  random-2: {splitter: random}
  random-2-uniform: {branches: random-2, merge: uniform}
  again: {branches: random-2-uniform, merge: {rule: regmean, ridge: 0.2}, pool: x}"""


def study_of(tmp_path, methods: str) -> Study:
    """The tiny study with these methods alone."""
    file = write_study(tmp_path)
    head = file.read_text().split("methods:\n")[0]
    file.write_text(f"{head}{methods}\n")
    return Study.open(file)


def test_they_train_what_the_other_trains(tmp_path):
    methods = study_of(tmp_path, METHODS).config.methods
    assert list(methods) == [
        *("joint", "merit-1d", "merit-1d-regmean", "merit-1d-fisher", "random-2", "random-2-uniform", "again")
    ]
    assert methods["merit-1d-fisher"].training == methods["merit-1d"].training == ("pca", 1, None, 2.0, 1.0, 0.0)
    assert methods["again"].training == methods["random-2"].training
    assert [
        (methods[name].merge, methods[name].ridge, methods[name].scales) for name in ("merit-1d-fisher", "again")
    ] == [
        ("fisher", 0.3, [1.0, 1.5]),
        ("regmean", 0.2, [1.0]),
    ]
    assert describe(methods["again"]).endswith(", regmean merge with ridge 0.2")


def test_the_same_branches_are_known_by_what_they_are(tmp_path):
    config = study_of(tmp_path, METHODS + "\n  mine: {splitter: pca, axes: 1, epochs: 2, merge: uniform}").config
    assert [config.trained_by(name) for name in ("merit-1d-regmean", "mine", "again", "joint")] == [
        *("merit-1d", "merit-1d", "random-2", "joint")
    ]


def test_they_are_read_back_as_they_were(tmp_path):
    study = study_of(tmp_path, METHODS)
    text = yaml.safe_dump(study.config.model_dump(mode="json"), sort_keys=False)
    (tmp_path / "again.yaml").write_text(text)
    assert load_section(tmp_path / "again.yaml", StudyConfig, "").methods == study.config.methods


def test_a_study_without_them_is_the_study_that_it_was(tmp_path):
    """The fields that a job depends on, as merit 0.1.0 wrote them."""
    methods = study_of(
        tmp_path, METHODS.split("  random-2-uniform")[0].replace("also: [regmean, {rule: fisher, ridge: 0.3}], ", "")
    ).config.methods
    assert {name: item.model_dump(mode="json", exclude_defaults=True) for name, item in methods.items()} == {
        "joint": {"splitter": "single"},
        "merit-1d": {"splitter": "pca", "epochs": 2.0, "scales": [1.0, 1.5]},
        "random-2": {"splitter": "random"},
    }


WRONG = {
    "x: {branches: nobody}": ("methods.x.branches", "no method 'nobody'; there are joint, random-2"),
    "x: {branches: random-3}": ("methods.x.branches", "did you mean `random-2`?"),
    "x: {branches: x}": ("methods.x.branches", "leads back to `x`"),
    "x: {branches: y}\n  y: {branches: x}": ("methods.x.branches", "leads back to `x`"),
    "x: {branches: random-2, epochs: 2}": ("methods.x.epochs", "are trained already; remove this key"),
    "x: {branches: random-2, splitter: pca}": ("methods.x.splitter", "are trained already; remove this key"),
    "x: {branches: random-2, merge: {rule: regmean, ridge: 0}}": ("methods.x.ridge", "greater than 0"),
    "x: {branches: random-2, merge: {rule: regmean, ridge: .nan}}": ("methods.x.ridge", "finite"),
    "x: {branches: random-2, merge: {rule: regmeen}}": ("methods.x.merge", "did you mean `regmean`?"),
    "x: {branches: joint, merge: regmean}": ("methods.x.merge", "one branch"),
    "x: {splitter: pca, also: [regmeen]}": ("methods.x.also.0.rule", "did you mean `regmean`?"),
    "x: {splitter: pca, also: [fisher, fisher]}": ("methods.x.also.1", "`x-fisher` is also the name of another"),
    "x: {splitter: pca, also: [fisher]}\n  x-fisher: {splitter: kmeans}": ("methods.x.also.0", "is also the name"),
    "x: {}": ("methods.x.splitter", "missing"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_field(text, tmp_path):
    field, says = WRONG[text]
    with pytest.raises(InputError) as caught:
        study_of(tmp_path, f"methods:\n  joint: {{splitter: single}}\n  random-2: {{splitter: random}}\n  {text}")
    problems = caught.value.problems if isinstance(caught.value, Problems) else [caught.value]
    assert problems[0].field == field
    assert says in problems[0].message
    assert problems[0].line is not None
