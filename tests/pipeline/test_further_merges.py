"""Several merges of one set of branches: `merge.also`, `baselines.NAME.branches`, `merit merge RUN --rule`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cli.command import Command
from diagnose.finished_run import RECIPE, finish_run, write_data
from merit.base.errors import InputError
from merit.context import RunContext
from merit.diagnose.step import run_models
from merit.evaluate.scores import Table
from merit.merge import average
from merit.merge import step as merge
from merit.merge.also import add_merge
from merit.merge.step import MethodMerge
from merit.report.evidence import read_evidence
from merit.report.verdict import reach_verdict
from merit.run.layout import RunDir
from merit.train.curvature import measure_branch
from merit.train.spec import BranchResult
from merit.train.step import ask_for

FURTHER = """
merge: {{also: [uniform, {{rule: regmean, ridge: 0.1}}], curvature_examples: 4}}
evaluate: {{held_out: 3, generate: 0, drift: 0}}
"""
BASELINES = """  random: {splitter: random, merge: uniform}
  random-tokens: {branches: random, merge: tokens}
  wise: {branches: joint, scales: [0.5]}
  soup: {branches: merit-uniform, merge: fisher}
"""
SOUP = {"branches": "merit", "merge": "fisher"}


def recipe(model: Path) -> str:
    text = RECIPE.format(model=model) + FURTHER.format()
    return text.replace("diagnose: {examples", BASELINES + "diagnose: {examples")


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory) -> RunDir:
    """Merged seven times: nothing here may change it."""
    folder = tmp_path_factory.mktemp("further")
    write_data(folder)
    (folder / "merit.yaml").write_text(recipe(tiny_model))
    return finish_run(folder / "merit.yaml", steps=3)


@pytest.fixture
def run(made, tmp_path) -> RunDir:
    """A copy of it, beside its data."""
    shutil.copytree(made.root.parents[1], tmp_path / "home", symlinks=True)
    return RunDir(tmp_path / "home" / "runs" / made.root.name)


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.astype("f8") for name, value in load_file(folder / "model.safetensors").items()}


def written(run: RunDir) -> dict[str, int]:
    """Weights and records below the run → when they were written."""
    files = [*run.root.rglob("model*.safetensors"), *run.root.rglob("merge.json"), *run.root.rglob("DONE")]
    return {file.relative_to(run.root).as_posix(): file.stat().st_mtime_ns for file in files}


def changed(before: dict[str, int], run: RunDir) -> set[str]:
    """The methods of which anything was written since."""
    now = written(run)
    names = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    return {name.split("/")[1] if name.startswith("baselines/") else "merit" for name in names}


def edit(run: RunDir, **sections: object) -> RunContext:
    """The run with these sections of its configuration replaced or extended."""
    values = yaml.safe_load(run.config.read_text())
    for name, value in sections.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    run.config.write_text(yaml.safe_dump(values))
    return RunContext.open(run.root)


def branches(run: RunDir, name: str = "merit") -> tuple[list[dict[str, np.ndarray]], list[int]]:
    folders = sorted(run.method(name).branches.iterdir())
    tokens = [json.loads((folder / "DONE").read_text())["supervised_tokens"] for folder in folders]
    return [tensors(folder / "checkpoint") for folder in folders], tokens


def average_of(models: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    total = sum(weights)
    return {name: sum(w * model[name] for w, model in zip(weights, models, strict=True)) / total for name in models[0]}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.astype("f4"), rtol=1e-6, atol=1e-9, err_msg=name)


def test_every_merge_is_of_the_branches_that_it_names(made):
    models, tokens = branches(made)
    assert_same(tensors(made.method().merged()), average_of(models, tokens))
    assert_same(tensors(made.method("merit-uniform").merged()), average_of(models, [1] * len(models)))
    others, counts = branches(made, "random")
    assert_same(tensors(made.method("random").merged()), average_of(others, [1] * len(others)))
    assert_same(tensors(made.method("random-tokens").merged()), average_of(others, counts))
    (joint,), _ = branches(made, "joint")
    base = tensors(RunContext.open(made.root).model.path)
    half = {name: base[name] + 0.5 * (joint[name] - base[name]) for name in joint}
    assert_same(tensors(made.method("wise").merged(0.5)), half)


def test_no_branch_is_trained_or_copied_twice(made):
    for name in ("merit-uniform", "merit-regmean", "random-tokens", "wise", "soup"):
        below = {path.name for path in made.method(name).root.iterdir()}
        assert below <= {"merged", "merged@0.5", "merge.json", "curved"}, name
    context = RunContext.open(made.root)
    assert [method.name for method in context.methods] == [
        *("merit", "merit-uniform", "merit-regmean", "joint", "random", "random-tokens", "wise", "soup")
    ]
    assert [method.name for method in context.trained] == ["merit", "joint", "random"]


def test_a_further_rule_is_the_same_rule(made, run):
    """RegMean with its ridge, and Fisher with its default, come out as they do as the run's own merge."""
    found = {name: tensors(run.method(name).merged()) for name in ("merit-regmean", "soup")}
    for name, own in (("merit-regmean", {"weights": "regmean", "ridge": 0.1}), ("soup", {"weights": "fisher"})):
        context = edit(run, merge={"ridge": None, "also": []} | own, baselines={"soup": {"branches": "merit"}})
        merge.run(context)
        mine = tensors(run.method().merged())
        for tensor, value in found[name].items():
            assert (mine[tensor] == value).all(), tensor
    assert any((found["soup"][tensor] != value).any() for tensor, value in found["merit-regmean"].items())


def test_nothing_is_made_twice(run):
    before = written(run)
    context = RunContext.open(run.root)
    assert merge.run(context) == {"merged": 0}
    assert changed(before, run) == set()


def test_one_rule_changed_is_one_merge_made_again(run):
    before = written(run)
    context = edit(run, merge={"also": ["uniform", {"rule": "regmean", "ridge": 0.3}]})
    assert merge.run(context) == {"merged": 1}
    assert changed(before, run) == {"merit-regmean"}
    assert MethodMerge.load(run.method("merit-regmean").merge_record).files


def test_the_main_merge_does_not_depend_on_the_others(run):
    before = written(run)
    context = edit(run, merge={"also": []}, baselines={"soup": SOUP})
    assert merge.run(context) == {"merged": 0}
    assert changed(before, run) == set()
    assert merge.depends(context) != merge.depends(edit(run, merge={"also": ["uniform"]}))


def test_without_further_merges_fingerprints_are_those_of_merit_0_1_0(run):
    """The sections as they were then, hashed as they were then."""
    from merit.base.record import fingerprint

    context = edit(run, merge={"also": []}, baselines={"soup": SOUP})
    old = context.config.merge.model_dump(mode="json")
    assert old.pop("also") == []
    assert context.config.merge.mark == old
    plain = [method for method in context.methods if method.config.merge is None and not method.source]
    assert [merge._wanted(method) for method in plain] == [[method.name, [1.0]] for method in plain]
    main = context.methods[0]
    mark = fingerprint(merge._inputs(context, main), old, [1.0], context.model.fingerprint)
    assert MethodMerge.load(main.dir.merge_record).fingerprint == mark


def test_another_branch_makes_every_merge_of_it_again(run):
    """As after `merit adopt`: the branch has another checkpoint."""
    context = RunContext.open(run.root)
    branch, joint = run.method().branch(0), run.method("joint").branch(0)
    shutil.rmtree(branch.checkpoint)
    shutil.copytree(joint.checkpoint, branch.checkpoint)
    files = BranchResult.load(joint.done).files
    BranchResult.load(branch.done).model_copy(update={"files": files}).save(branch.done)
    before = written(run)
    with pytest.raises(InputError, match="no sketch of its inputs"):
        merge.run(context)  # it came without one: `merit run` measures it before it merges
    ask_for(branch, 4)
    measure_branch(run, branch)
    assert merge.run(context) == {"merged": 2}
    assert changed(before, run) == {"merit", "merit-uniform", "merit-regmean", "soup"}
    models, _ = branches(run)
    assert_same(tensors(run.method("merit-uniform").merged()), average_of(models, [1] * len(models)))


def test_a_partial_run_leaves_the_same_branch_out_of_all(run):
    context = RunContext.open(run.root)
    run.method().branch(0).done.unlink()
    with pytest.raises(InputError, match="DONE"):
        merge.run(context)
    context.partial = True
    assert merge.run(context) == {"merged": 4}
    left = tensors(run.method().branch(1).checkpoint)
    for name in ("merit", "merit-uniform", "merit-regmean", "soup"):
        assert MethodMerge.load(run.method(name).merge_record).left_out == [0]
        assert_same(tensors(run.method(name).merged()), left)


def test_a_merge_that_is_killed_resumes_alone(run, monkeypatch):
    whole = {name: tensors(run.method(name).merged()) for name in ("merit", "merit-uniform", "soup")}
    for name in whole:
        run.method(name).merge_record.unlink()
        shutil.rmtree(run.method(name).merged())
    calls, real = [], average.merge_checkpoints

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(average, "merge_checkpoints", dies)
    with pytest.raises(KeyboardInterrupt):
        merge.run(RunContext.open(run.root))
    before = written(run)
    monkeypatch.setattr(average, "merge_checkpoints", real)
    assert merge.run(RunContext.open(run.root)) == {"merged": 2}
    assert changed(before, run) == {"merit-uniform", "soup"}
    for name, wanted in whole.items():
        assert all((value == tensors(run.method(name).merged())[tensor]).all() for tensor, value in wanted.items())


@pytest.mark.parametrize("ridge", [None, 0.5])
def test_one_more_merge_of_a_finished_run(run, merit, ridge):
    before = written(run)
    given = [] if ridge is None else ["--ridge", ridge]
    done = merit("merge", run.root, "--rule", "fisher", *given)
    assert done.code == 0, done.err
    assert "merit-fisher" in done.out
    assert f"`merit evaluate {run.root}` measures it" in " ".join(done.out.split())
    assert changed(before, run) == {"merit-fisher"}
    entries = yaml.safe_load(run.config.read_text())["merge"]["also"]
    assert [item["rule"] for item in entries] == ["uniform", "regmean", "fisher"]
    assert entries[-1]["ridge"] == ridge
    mine, soup = tensors(run.method("merit-fisher").merged()), tensors(run.method("soup").merged())
    assert all((mine[name] == soup[name]).all() for name in mine) == (ridge is None)
    assert merge.run(RunContext.open(run.root)) == {"merged": 0}


def test_one_more_merge_again_is_no_work(run, merit):
    done = merit("merge", run.root, "--rule", "uniform", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["method"] == "merit-uniform"
    before = written(run)
    assert merit("merge", run.root, "--rule", "regmean", "--ridge", "0.1").code == 0
    assert changed(before, run) == set()
    assert merit("merge", run.root, "--rule", "regmean", "--ridge", "0.2").code == 0
    assert changed(before, run) == {"merit-regmean"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--rule", "regmeen"], "`--rule`: no rule 'regmeen'; did you mean `regmean`?"),
        (["--rule", "regmean", "--ridge", "0"], "`--ridge`: 0.0 is no ridge"),
        (["--rule", "regmean", "--ridge", "nan"], "`--ridge`: nan is no ridge"),
        (["--rule", "tokens"], "`--rule`: `merge.weights` is `tokens` already"),
        (["--ridge", "0.1"], "`--ridge`: is for one more merge of a run; name its --rule"),
        (["--rule", "fisher", "--redo"], "`--redo`: is not for one more merge"),
        (["--rule", "fisher", "--dtype", "float16"], "`--dtype`: a run is merged as its configuration says"),
    ],
)
def test_what_one_more_merge_refuses(run, merit, given, says):
    before, config = written(run), run.config.read_bytes()
    done = merit("merge", run.root, *given)
    assert done.code == 2
    assert says in " ".join(done.err.split())
    assert len(done.err.strip().splitlines()) <= 2
    assert (changed(before, run), run.config.read_bytes()) == (set(), config)


def test_a_merge_that_fails_leaves_the_configuration(run, merit):
    config = run.config.read_bytes()
    run.method().branch(1).done.unlink()
    done = merit("merge", run.root, "--rule", "fisher")
    assert done.code == 2
    assert run.config.read_bytes() == config


def test_a_configuration_is_told_to_name_the_rule_itself(run, merit):
    file = run.root.parents[1] / "merit.yaml"
    done = merit("merge", file, "--rule", "fisher")
    assert done.code == 2
    assert "merge: {also: [fisher]}" in " ".join(done.err.split())


def test_an_unmerged_run_has_no_further_merge(run, tmp_path):
    run.method().merge_record.unlink()
    with pytest.raises(InputError, match="not been merged yet"):
        add_merge(RunContext.open(run.root), "fisher")


def test_removing_a_dataset_keeps_the_merges_of_the_main_method(run):
    """Baselines that train are dropped; what merges merit's branches goes on."""
    from merit.train.add_remove import remove_dataset

    seen: list[RunContext] = []
    with pytest.raises(InputError, match="stop here"):
        remove_dataset(RunContext.open(run.root), "last", lambda context: stop(seen, context), baselines=False)
    assert list(seen[0].config.baselines) == ["soup"]
    assert [method.name for method in seen[0].trained] == ["merit"]
    assert [item.rule for item in seen[0].config.merge.also] == ["uniform", "regmean"]


def stop(seen: list[RunContext], context: RunContext) -> None:
    seen.append(context)
    raise InputError("stop here")


@pytest.fixture
def told(evaluated) -> Iterator[RunDir]:
    """The evaluated run, whose configuration a test may change."""
    config = evaluated.config.read_bytes()
    yield evaluated
    evaluated.config.write_bytes(config)
    shutil.rmtree(evaluated.method("merit-fisher").root, ignore_errors=True)


@pytest.fixture(scope="module")
def evaluated(made) -> RunDir:
    """A copy of it, evaluated and reported."""
    from merit.evaluate import step as evaluate
    from merit.report.build import build_report
    from merit.report.card import write_run_card

    home = made.root.parents[1]
    shutil.copytree(home, home.with_name("told"), symlinks=True)
    run = RunDir(home.with_name("told") / "runs" / made.root.name)
    evaluate.run(RunContext.open(run.root))
    build_report(run.root)
    write_run_card(run.root)
    return run


def test_every_merge_is_a_row_of_the_table(told):
    table = Table.load(told.table)
    rows = {row.label: row for row in table.rows}
    assert [label for label in rows if "/" not in label] == [
        *("base", "merit", "merit-uniform", "merit-regmean", "joint", "random", "random-tokens", "wise@0.5", "soup")
    ]
    words = {label: row.description for label, row in rows.items()}
    assert words["merit"] == "MERIT, 2 groups, token average"
    assert words["merit-uniform"] == "MERIT, 2 groups, uniform average"
    assert words["merit-regmean"] == "MERIT, 2 groups, RegMean merge with ridge 0.1"
    assert words["soup"] == "MERIT, 2 groups, Fisher merge"
    assert words["joint"] == "joint training, token average"
    assert rows["soup"].supervised_tokens == rows["merit"].supervised_tokens > 0
    assert [rows[name].branches for name in ("base", "merit", "soup", "random-tokens")] == [
        *(None, "merit", "merit", "random")
    ]
    pairs = {(item.a, item.b) for item in table.comparisons}
    assert {("merit", "merit-uniform"), ("merit", "joint"), ("soup", "joint"), ("merit-uniform", "base")} <= pairs
    assert ("merit-uniform", "soup") not in pairs
    assert ("random-tokens", "joint") not in pairs


def test_only_what_changed_is_measured_again(told, monkeypatch):
    from merit.evaluate import measure

    assert measure.missing(RunContext.open(told.root)) == []
    context = edit(told, merge={"also": ["uniform", {"rule": "regmean", "ridge": 0.1}, "fisher"]})
    merge.run(context)
    assert [subject.label for subject, _ in measure.missing(context)] == ["merit-fisher"]


def test_the_report_tells_them_apart(told):
    page, card = told.report.read_text(), told.card.read_text()
    for text in (page, card):
        assert "merit-uniform (uniform, the branches of merit)" in text
        assert "wise (tokens, the branches of joint)" in text
        assert "soup (fisher, the branches of merit)" in text
        assert "joint (single) and random (random)" in text
    assert "The merge (merit-uniform) minus every other model" in page
    assert "| merit-regmean | MERIT, 2 groups, RegMean merge with ridge 0.1 |" in card
    evidence = read_evidence(told.root)
    assert [method.name for method in evidence.methods] == ["merit", "joint", "random"]
    assert "(2 groups) was split at random" in page
    assert not any(f"{name}</code> (" in page for name in ("merit-uniform", "random-tokens", "wise", "soup"))
    verdict = reach_verdict(evidence)
    assert verdict is not None
    assert not any("synchronised" in line and "MERIT, 2 groups" in line for line in verdict.remarks)


def test_advice_names_the_best_merge_of_each_set_of_branches(told, merit):
    rows = {row.label: row.in_mixture for row in Table.load(told.table).rows if row.branches == "merit"}
    done = merit("advise", told.root, "--prefer", "in_mixture=1")
    assert done.code == 0, done.err
    names = [name for name in rows if "/" not in name]
    best = min(names, key=lambda name: rows[name])
    assert f"of the merges of merit's branches: {best} (" in done.out
    assert "of the merges of random's branches: " in done.out


def test_what_asks_for_branches_names_those_that_train(told, merit):
    done = merit("status", told.root, "--json")
    assert {item["method"] for item in json.loads(done.out)} == {"merit", "joint", "random"}
    done = merit("handover", told.root, "--to", "trl", "--method", "merit-uniform")
    assert done.code == 2
    assert "'merit-uniform' merges the branches of 'merit'; name that one" in " ".join(done.err.split())


def test_the_plan_counts_merges_and_trains_no_branch_twice(told, merit):
    file = told.root.parents[1] / "merit.yaml"
    plans = []
    for also in ("also: [uniform, {rule: regmean, ridge: 0.1}], ", ""):
        text = file.read_text()
        (file.parent / "other.yaml").write_text(
            text.replace("also: [uniform, {rule: regmean, ridge: 0.1}], ", also).replace("merit-uniform", "merit")
        )
        done = merit("plan", file.parent / "other.yaml", "--json", "--tokens-per-second", 1000)
        assert done.code == 0, done.err
        plans.append(json.loads(done.out))
    several, one = plans
    assert [item["name"] for item in several["methods"]] == [item["name"] for item in one["methods"]]
    stages = {stage["stage"]: (stage, other) for stage, other in zip(several["stages"], one["stages"], strict=True)}
    train, alone = stages["train"]
    assert {**train, "disk_bytes": 0} == {**alone, "disk_bytes": 0}
    assert 1 < train["disk_bytes"] / alone["disk_bytes"] < 1.1  # the branches' sketches, for regmean
    model = stages["merge"][1]["disk_bytes"] / 6  # merit, joint, random, random-tokens, wise, soup
    assert stages["merge"][0]["disk_bytes"] == pytest.approx(8 * model)
    assert stages["evaluate"][0]["tokens"] > stages["evaluate"][1]["tokens"]


def test_figures_and_the_hub_have_them(told, merit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)  # no picture needs to be drawn
    done = merit("report", told.root, "--figures", tmp_path / "figures")
    assert done.code == 0, done.err
    csv = (tmp_path / "figures" / "forest-0.csv").read_text()
    assert csv.splitlines()[1].startswith('"joint",')
    assert any(line.startswith('"wise@0.5",') for line in csv.splitlines())
    done = merit("push", told.method("merit-uniform").merged(), "me/uniform", "--dry-run", "--license", "mit")
    assert done.code == 0, done.err
    assert "model.safetensors" in done.out


def test_a_diagnosis_is_of_the_main_merge_and_of_joint_training(told):
    models = run_models(edit(told, baselines={"early": {"branches": "joint", "scales": [1.0]}}))
    assert models.merge == told.method().merged()
    assert models.joint == told.method("joint").merged()
    assert len(models.branches) == 2
