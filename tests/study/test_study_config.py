"""What is wrong with a study file is said in one line a mistake, with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_study import write_study

from merit.base.errors import InputError
from merit.config.study import MethodConfig, standard_methods
from merit.study.advice import advise_study, parse_trade_off
from merit.study.results import Results
from merit.study.spec import Study
from merit.study.tables import draw


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": "seeds: [1, 1]"}, r"study.yaml:\d+: `seeds`: a seed is listed twice"),
        ({"seeds": "sedes: [1]"}, r"`sedes`: unknown key; did you mean `seeds`\?"),
        ({"budgets": "budgets: {half: 1.5}"}, r"`budgets.half`: Input should be less than or equal to 1"),
        ({"budgets": "budgets: {Half/2: 0.5}"}, r"`budgets.Half/2`: use lower-case letters"),
        ({"unseen": 'unseen: {gcd: {path: "reasoning_gym:gcd"}}'}, r"`unseen.gcd`: this is also the name of a dataset"),
        ({"question": "question: {budget: big}"}, r"`question.budget`: no budget 'big' in `budgets`"),
        (
            {"  soup-2": "  soup-2: {splitter: replicate}"},
            r"`methods.soup-2.copies`: a soup \(`replicate`\) needs this field",
        ),
        ({"  random-2": "  random-2: {splitter: random, axes: 3}"}, r"`methods.random-2.axes`: 8 groups need as many"),
        ({"  joint": "  joined: {splitter: single}"}, r"`reference`: no method 'joint' in `methods`"),
        ({"  merit-1d": "  merit-1d: {splitter: pcaa}"}, r"`methods.merit-1d.splitter`: .*did you mean `pca`\?"),
    ],
)
def test_mistakes(tmp_path, changes, said):
    with pytest.raises(InputError) as error:
        Study.open(write_study(tmp_path, **changes))
    assert re.search(said, str(error.value)), str(error.value)
    assert "study.yaml" in str(error.value)


def test_no_study_in_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"there is no study.yaml in it"):
        Study.open(tmp_path)


def test_the_standard_methods_hold_the_published_ones_and_the_controls():
    methods = standard_methods()
    assert {
        "joint",
        "joint-0.5ep",
        "joint-2ep",
        "random-2",
        "random-4",
        "random-8",
        "adversarial-2",
        "kmeans-4",
    } <= set(methods)
    assert {f"soup-{k}" for k in (2, 3, 4)} | {f"merit-{k}d" for k in (1, 2, 3)} | {"merit-auto"} <= set(methods)
    assert {"joint-slow", "joint-fast", "joint-pull-1", "merit-2d-ties", "merit-2d-dare"} <= set(methods)
    assert methods["joint"].scales == [0.3, 0.5, 0.7, 0.85, 1.0]
    assert methods["soup-3"].passes == 3
    assert MethodConfig(splitter="pca", axes="auto").groups is None


def test_saved_studies_are_read_back(tmp_path):
    study = Study.open(write_study(tmp_path), output=tmp_path / "out")
    study.save()
    assert Study.open(tmp_path / "out").config == study.config


def shipped(name: str) -> Study:
    return Study.open(Path(__file__).parents[2] / "studies" / name / "study.yaml")


def test_the_second_sitting_asks_for_the_same_at_the_large_budget():
    first, second = (shipped(name).config for name in ("smollm2", "smollm2-large"))
    apart = {"name", "seeds", "budgets", "question", "methods"}
    assert second.model_dump(exclude=apart) == first.model_dump(exclude=apart)
    assert second.budgets == {"large": first.budgets["large"]}
    assert all(first.methods[name] == method for name, method in second.methods.items())


@pytest.mark.parametrize("name", ["small", "smollm2"])
def test_the_shipped_studies_are_read(name):
    study = shipped(name)
    assert len(study.config.mixture) >= {"small": 24, "smollm2": 16}[name]
    assert len(study.config.seeds) >= {"small": 5, "smollm2": 3}[name]
    assert {"joint", "soup-2", "random-4", "merit-1d", "merit-2d", "merit-2d-regmean"} <= set(study.config.methods)


@pytest.mark.parametrize("name", ["small", "smollm2", "smollm2-large"])
def test_the_shipped_results_are_drawn_as_they_stand(name, tmp_path):
    """Results of earlier versions are still read, and give the tables that lie beside them."""
    shipped_results = Path(__file__).parents[2] / "studies" / name / "results"
    draw(Results.load(shipped_results / "results.json"), tmp_path)
    for file in ("tables.md", "table.tex"):
        assert (tmp_path / file).read_text() == (shipped_results / file).read_text()
    assert advise_study(Results.load(shipped_results / "results.json"), parse_trade_off(None)).lines


def test_draws_of_random_groups_are_apart_and_the_first_is_the_seeds(tmp_path):
    """The seed's own draw keeps its place and its groups; a further one is neither that nor another seed's."""
    study = Study.open(
        write_study(tmp_path, **{"  random-2": "  random-2: {splitter: random}\n  b: {splitter: random, draw: 2}"})
    )
    first, second = (study.config.methods[name] for name in ("random-2", "b"))
    assert first.training == ("random", 1, None, 1.0, 1.0, 0.0)
    assert study.dir.partition(0, first).root.name == "random-1"
    assert study.dir.partition(0, second).root.name == "random-1-draw-2"
    assert study.config.trained_by("b") == "b"
    baselines = study.seed_run(0).config.baselines
    assert (baselines["random-1"].draw, baselines["random-1-draw-2"].draw) == (1, 2)
    with pytest.raises(InputError, match=r"`methods.merit-1d.draw`: only random groups are drawn"):
        Study.open(write_study(tmp_path, **{"  merit-1d": "  merit-1d: {splitter: pca, draw: 2}"}))
