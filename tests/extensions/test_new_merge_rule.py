"""A new merge rule is one new file, and everything else knows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from extended import add, finish, python, reference, schema
from finished_run import RECIPE, write_data
from safetensors.numpy import load_file

FIRST = '''"""`first`: the first branch alone."""

from merit.merge.rule import MergeRule


def weights(branches):
    return [1.0] + [0.0] * (len(branches.folders) - 1)


RULE = MergeRule(label="first come", how="by leaving all but the first out", weights=weights, needs_tokens=False)
'''
LARGEST = '''"""`largest`: of every weight the step that goes farthest."""

import torch

from merit.merge.rule import MergeRule


def farthest(of):
    steps = torch.stack(of.steps)
    return steps.gather(0, steps.abs().argmax(0, keepdim=True))[0]


RULE = MergeRule(label="farthest step", how="by the farthest step of every weight", tensor=farthest)
'''
CLOSED = '''"""`closed`: every linear layer solved for the branches' steps alone; no data."""

import torch

from merit.merge.rule import MergeRule


def solved(of):
    """(Σ Δ_k C_k + λ c Δ) (Σ C_k + λ c I)⁻¹, with C_k = Δ_kᵀ Δ_k, c their mean diagonal, Δ the token average."""
    if not of.is_linear:
        return of.mean
    grams = [step.T @ step for step in of.steps]
    total = sum(grams)
    level = of.ridge * float(total.diagonal().mean()) / len(grams)
    pulled = sum(step @ gram for step, gram in zip(of.steps, grams)) + level * of.mean
    return torch.linalg.solve(total + level * torch.eye(len(total), dtype=total.dtype), pulled.T).T


RULE = MergeRule(label="closed form", how="with every linear layer solved for their steps alone", tensor=solved)
'''


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def recipe(model, rule):
    return RECIPE.format(model=model) + f"merge: {{weights: {rule}, scales: [1.0, 0.5]}}\n"


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_a_rule_of_weights(folder, tiny_model):
    add(folder, "rules", "first", FIRST)
    assert "first" in json.loads(schema(folder))["$defs"]["MergeConfig"]["properties"]["weights"]["enum"]
    page = reference(folder)
    assert "or `first`" in page
    assert "the first branch alone" in page
    assert "first" in python(folder, "-m", "merit", "merge", "--help")
    run = finish(folder, recipe(tiny_model, "first"))
    merged, branches = tensors(run / "merged"), [run / "branches" / name / "checkpoint" for name in ("00", "01")]
    for name, value in tensors(branches[0]).items():
        assert (merged[name] == value).all()
    assert "the first branch alone" in (run / "report.html").read_text()
    assert "**First come**: the branches were merged by leaving all but" in (run / "merged" / "README.md").read_text()
    python(folder, "-m", "merit", "merge", *map(str, branches), "-o", "mine", "--weights", "first")
    assert all((merged[name] == value).all() for name, value in tensors(folder / "mine").items())


def test_a_rule_of_tensors(folder, tiny_model):
    add(folder, "rules", "largest", LARGEST)
    run = finish(folder, recipe(tiny_model, "largest"))
    base = tensors(tiny_model)
    branches = [tensors(run / "branches" / name / "checkpoint") for name in ("00", "01")]
    for name, value in tensors(run / "merged").items():
        one, two = (branch[name].astype(float) - base[name] for branch in branches)
        wanted = base[name] + (one * (abs(one) >= abs(two)) + two * (abs(one) < abs(two)))
        assert (value == wanted.astype("f4")).all()
    half = tensors(run / "merged@0.5")["model.norm.weight"] - base["model.norm.weight"]
    whole = tensors(run / "merged")["model.norm.weight"] - base["model.norm.weight"]
    assert abs(half - whole / 2).max() < 1e-6
    card = (run / "merged" / "README.md").read_text()
    assert "mergekit recipe" not in card
    assert "copy" in card
    assert "shout" in card
    record = json.loads((run / "merge.json").read_text())
    assert len(record["branch_displacement"]) == 2
    folders = [run / "branches" / name / "checkpoint" for name in ("00", "01")]
    said = python(folder, "-m", "merit", "merge", *map(str, folders), "-o", "mine", "--weights", "largest", code=2)
    assert "name it with --rule" in said
    command = ["merge", *map(str, folders), "-o", "mine", "--rule", "largest", "--base", str(tiny_model)]
    python(folder, "-m", "merit", *command)
    assert all((value == tensors(run / "merged")[name]).all() for name, value in tensors(folder / "mine").items())


def test_a_rule_beside_the_runs_own(folder, tiny_model):
    """The average stays what it is, and the new rule's merge of the same branches stands beside it."""
    add(folder, "rules", "largest", LARGEST)
    run = finish(folder, RECIPE.format(model=tiny_model) + "merge: {also: [largest], scales: [1.0, 0.5]}\n")
    base = tensors(tiny_model)
    places = [run / "branches" / name for name in ("00", "01")]
    branches = [tensors(place / "checkpoint") for place in places]
    tokens = [json.loads((place / "DONE").read_text())["supervised_tokens"] for place in places]
    beside = run / "baselines" / "merit-largest"
    average, further, half = (tensors(folder) for folder in (run / "merged", beside / "merged", beside / "merged@0.5"))
    for name, start in base.items():
        models = [branch[name].astype("f8") for branch in branches]
        mean = sum(n * model for n, model in zip(tokens, models, strict=True)) / sum(tokens)
        np.testing.assert_allclose(average[name], mean, rtol=1e-6, atol=1e-9)
        one, two = (model - start for model in models)
        wanted = start + np.where(abs(one) >= abs(two), one, two)
        assert (further[name] == wanted.astype("f4")).all()
        np.testing.assert_allclose(half[name], (start + wanted) / 2, atol=1e-6)
    assert "merit-largest (largest, the branches of merit)" in (run / "report.html").read_text()
    python(folder, "-m", "merit", "merge", "--verify", str(beside / "merged"))


def test_a_rule_by_linear_layers(folder, tiny_model):
    add(folder, "rules", "closed", CLOSED)
    run = finish(folder, recipe(tiny_model, "closed").replace("scales", "ridge: 0.5, scales"))
    base = {name: value.astype("f8") for name, value in tensors(tiny_model).items()}
    branches = [run / "branches" / name for name in ("00", "01")]
    tokens = [json.loads((branch / "DONE").read_text())["supervised_tokens"] for branch in branches]
    models = [tensors(branch / "checkpoint") for branch in branches]
    solved = set()
    for name, value in tensors(run / "merged").items():
        steps = [model[name] - base[name] for model in models]
        mean = sum(n * step for n, step in zip(tokens, steps, strict=True)) / sum(tokens)
        want = base[name] + mean
        if "proj" in name:
            grams = [step.T @ step for step in steps]
            level = 0.5 * sum(grams).diagonal().mean() / 2
            pulled = sum(step @ gram for step, gram in zip(steps, grams, strict=True)) + level * mean
            want = base[name] + pulled @ np.linalg.inv(sum(grams) + level * np.eye(len(grams[0])))
            solved |= {name} if abs(want - base[name] - mean).max() > 1e-6 else set()
        assert np.allclose(value, want, rtol=0, atol=1e-6), name
    assert len(solved) > 3


def test_an_edited_rule_is_merged_again(folder, tiny_model):
    add(folder, "rules", "largest", LARGEST)
    run = finish(folder, RECIPE.format(model=tiny_model) + "merge: {also: [largest]}\n")
    beside, record = run / "baselines" / "merit-largest", (run / "merge.json").read_bytes()
    before, kept = tensors(beside / "merged"), (beside / "merge.json").read_bytes()
    python(folder, "-m", "merit", "merge", str(run))
    assert (beside / "merge.json").read_bytes() == kept
    (folder / "merit_ext" / "rules" / "largest.py").write_text(LARGEST.replace("argmax", "argmin"))
    python(folder, "-m", "merit", "merge", str(run))
    after = tensors(beside / "merged")
    assert all((after[name] != value).any() for name, value in before.items() if "proj" in name)
    assert (run / "merge.json").read_bytes() == record
