"""`merge.weights: regmean` in a run: another merge than the token average, and its limit when the ridge is strong."""

from __future__ import annotations

import numpy as np
from runs import write_recipe

from merit.base.record import fingerprint
from merit.context import RunContext
from merit.merge.ray import norm, read_state
from merit.merge.step import MethodMerge
from merit.models.input_sketch import InputSketch
from merit.pipeline import run_pipeline
from merit.run.layout import RunDir
from merit.train.spec import BranchResult, BranchSpec, damaged_files


def merged(folder, model, weights):
    """Runs to the merge with `weights`; returns the run."""
    file = write_recipe(folder, model, epochs=1)
    text = file.read_text().replace("baselines:\n  joint: {splitter: single, scales: [1.0, 0.5]}\n", "")
    file.write_text(f"{text}merge: {weights}\n")
    context = RunContext.open(file)
    run_pipeline(context, until="merge")
    return RunDir(context.run.root)


def written(branch):
    return (branch.checkpoint / "model.safetensors").stat().st_mtime_ns


def check_measured(run, k):
    """The branch's sketch: found, small, kept track of, and left out of the merge."""
    branch = run.method().branch(k)
    sketch = InputSketch.open(branch.checkpoint, branch=fingerprint(BranchSpec.load(branch.spec)))
    assert "checkpoint/curvature/inputs.safetensors" in BranchResult.load(branch.done).files
    assert not damaged_files(branch)
    weights = (branch.checkpoint / "model.safetensors").stat().st_size
    assert sketch.file.stat().st_size <= 0.1 * weights
    assert sketch.facts.wanted == 64
    assert sketch.facts.tokens > 0
    assert not (run.method().merged() / "curvature").exists()


def test_curvature_in_a_run(warm_jobs, four_files, tiny_model):
    folder = four_files / "run"
    folder.mkdir()
    for file in four_files.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    run = merged(folder, tiny_model, "{weights: tokens}")
    average = read_state(run.method().merged())
    record = MethodMerge.load(run.method().merge_record)
    trained = [written(run.method().branch(k)) for k in range(2)]
    run = merged(folder, tiny_model, "{weights: regmean, ridge: 0.1, scales: [1.0, 0.5]}")
    curved, half = read_state(run.method().merged()), read_state(run.method().merged(0.5))
    found = MethodMerge.load(run.method().merge_record)
    strong = read_state(merged(folder, tiny_model, "{weights: regmean, ridge: 1e6}").method().merged())
    assert [written(run.method().branch(k)) for k in range(2)] == trained, "branches are measured, not trained again"
    for k in range(2):
        check_measured(run, k)
    np.testing.assert_allclose(found.branch_displacement, record.branch_displacement, rtol=1e-5)
    np.testing.assert_allclose(found.weights, record.weights)
    away = norm({name: curved[name] - average[name] for name in average})
    assert away > 0.01 * record.displacement["1"]
    assert norm({name: strong[name] - average[name] for name in average}) < 1e-3 * away
    base = read_state(RunContext.open(folder / "merit.yaml").model.path)
    for name, start in base.items():
        np.testing.assert_allclose(half[name], start + 0.5 * (curved[name] - start), atol=1e-6)
    assert (run.method().merged() / "README.md").is_file()
