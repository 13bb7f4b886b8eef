"""The conflict stage as a command: explained, spread over workers, with as many axes and examples as it takes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from runs import merit_here as merit
from runs import start_warm, write_recipe
from safetensors.torch import load_file, save_file

from four_files import write_four_files
from merit.conflict.explain import Explanation
from merit.run.events import read_events
from merit.run.layout import RunDir
from merit.split.evidence import AxesEvidence
from merit.split.partition import Partition


def recipe(folder: Path, model: Path, **changes: str) -> Path:
    """merit.yaml of the golden run with lines replaced, and no baseline."""
    write_four_files(folder)
    file = write_recipe(folder, model)
    text = file.read_text().partition("baselines:")[0]
    for key, line in changes.items():
        text = "\n".join(f"{key}: {line}" if old.startswith(f"{key}:") else old for old in text.splitlines())
    file.write_text(text + "\n")
    return file


def test_workers_find_the_same_conflict_as_one_process(warm_jobs: None, tiny_model: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    merit("conflict", recipe(one, tiny_model))
    file = recipe(two, tiny_model)
    file.write_text(file.read_text() + "launch: {parallel: 2}\n")
    merit("conflict", file)
    runs = [RunDir(folder / "runs" / "merit") for folder in (one, two)]
    assert np.array_equal(np.load(runs[0].similarity), np.load(runs[1].similarity))
    workers = [event for event in read_events(runs[1].events) if event["event"] == "end" and "worker" in event["stage"]]
    assert len(workers) == 2
    assert sum(event["datasets"] for event in workers) == 4


def test_explain(tiny_model: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, tiny_model)
    found = json.loads(merit("conflict", file, "--explain", "--json"))["result"]
    run = RunDir(tmp_path / "runs" / "merit")
    assert found == Explanation.load(run.explanation).model_dump(mode="json")
    assert len(found["pairs"]) == 6
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    out = merit("conflict", file, "--explain")
    first = found["pairs"][0]
    assert f"{first['first']} ↔ {first['second']}" in out
    assert "outside layers" in out
    assert "Where in the model the conflict is" in run.report.read_text(encoding="utf-8")


def test_axes_auto_and_examples_until_stable(tiny_model: Path, tmp_path: Path) -> None:
    file = recipe(
        tmp_path,
        tiny_model,
        calibration="{examples: auto, until: 0.001}",
        split="{splitter: pca, axes: auto}",
    )
    out = merit("split", file)
    run = RunDir(tmp_path / "runs" / "merit")
    evidence = AxesEvidence.load(run.axes_evidence)
    groups = Partition.load(run.method().partition).groups
    assert len(groups) == 2**evidence.recommended
    assert evidence.reason in out
    merit("split", file)  # unchanged: the same again
    assert len(Partition.load(run.method().partition).groups) == len(groups)


def test_a_proxy_and_its_agreement(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "sibling"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    merit("conflict", recipe(tmp_path, tiny_model), "-o", tmp_path / "a")
    merit(
        "conflict", recipe(tmp_path, tiny_model, calibration=f"{{examples: 6, proxy: {other}}}"), "-o", tmp_path / "b"
    )
    cosines = [np.load(RunDir(tmp_path / name).similarity) for name in "ab"]
    assert not np.array_equal(*cosines)
    found = json.loads(merit("agree", tmp_path / "a", tmp_path / "b", "--axes", "1", "--json"))
    upper = np.triu_indices(4, 1)
    assert found["mantel_r"] == pytest.approx(np.corrcoef(cosines[0][upper], cosines[1][upper])[0, 1])
    assert found["datasets"] == ["chat", "copy", "last", "shout"]


def test_a_killed_conflict_stage_keeps_what_it_measured(tiny_model: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, tiny_model)
    run = RunDir(tmp_path / "runs" / "merit")
    rows = run.gradients / "rows"
    process = start_warm("conflict", file)
    deadline = time.monotonic() + 120
    while len(list(rows.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert len(kept) >= 2
    merit("conflict", file)
    assert len(list(rows.glob("*.json"))) == 4
    assert {name: (rows / name).stat().st_mtime_ns for name in kept} == kept
