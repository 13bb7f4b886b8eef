"""One whole run on a tiny model, looked at from every side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import merit, merit_here, weights_of, write_recipe
from safetensors.torch import load_file

from four_files import write_four_files
from merit.conflict.axes import AxesResult
from merit.conflict.similarity import ConflictResult
from merit.data.mixture import Mixture
from merit.evaluate.scores import Table
from merit.run.events import read_events
from merit.run.layout import RunDir
from merit.split.partition import Partition
from merit.train.spec import BranchResult


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("golden")
    write_four_files(folder)
    out = merit("run", write_recipe(folder, tiny_model))
    run = RunDir(folder / "runs" / "merit")
    assert str(run.report) in out
    assert "joint" in out
    return run


def test_mixture_counts_agree_with_the_files(run: RunDir) -> None:
    mixture = Mixture.load(run.mixture)
    assert mixture.names == ["chat", "copy", "last", "shout"]
    for item in mixture.datasets:
        assert item.train.examples + item.held_out.examples == 20  # forty rows, each there twice
        assert item.duplicates == 20
    shout = mixture.datasets[3]
    assert shout.planned_tokens == round(shout.train.supervised_tokens * 0.5)


def test_similarity_is_a_matrix_of_cosines(run: RunDir) -> None:
    cosines = np.load(run.similarity)
    assert cosines.shape == (4, 4)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-12)
    np.testing.assert_array_equal(cosines, cosines.T)
    assert ConflictResult.load(run.conflict).names == AxesResult.load(run.axes).names


def test_groups_cover_the_mixture_once(run: RunDir) -> None:
    groups = Partition.load(run.method().partition).groups
    assert len(groups) == 2
    assert sorted(name for group in groups for name in group.datasets) == ["chat", "copy", "last", "shout"]


def test_tokens_trained_on_are_those_planned(run: RunDir) -> None:
    mixture = Mixture.load(run.mixture)
    stored = {item.name: item for item in mixture.datasets}
    groups = Partition.load(run.method().partition).groups
    for k, group in enumerate(groups):
        result = BranchResult.load(run.method().branch(k).done)
        whole = sum(stored[name].train.supervised_tokens * 2 for name in group.datasets if name != "shout")
        if "shout" not in group.datasets:
            assert result.supervised_tokens == whole
        else:  # half of the rows, twice: their lengths vary
            assert result.supervised_tokens > whole
    joint = BranchResult.load(run.method("joint").branch(0).done)
    branches = [BranchResult.load(run.method().branch(k).done) for k in range(2)]
    assert joint.supervised_tokens == sum(item.supervised_tokens for item in branches)


def test_the_merge_is_the_token_weighted_average(run: RunDir) -> None:
    method = run.method()
    results = [BranchResult.load(method.branch(k).done) for k in range(2)]
    total = sum(item.supervised_tokens for item in results)
    parts = [load_file(method.branch(k).checkpoint / "model.safetensors") for k in range(2)]
    merged = load_file(method.merged() / "model.safetensors")
    assert merged.keys() == parts[0].keys()
    for name, tensor in merged.items():
        wanted = sum(part[name].double() * item.supervised_tokens for part, item in zip(parts, results, strict=True))
        torch.testing.assert_close(tensor, (wanted / total).float(), rtol=0, atol=0)


def test_wise_ft_lies_half_way_to_the_init(run: RunDir, tiny_model: Path) -> None:
    joint = load_file(run.method("joint").merged() / "model.safetensors")
    half = load_file(run.method("joint").merged(0.5) / "model.safetensors")
    init = load_file(tiny_model / "model.safetensors")
    for name, tensor in half.items():
        wanted = (init[name].double() + joint[name].double()) / 2
        torch.testing.assert_close(tensor, wanted.float(), rtol=0, atol=0)


def test_the_merged_model_loads_and_speaks(run: RunDir) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(run.method().merged())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "copy one two"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_the_table_measures_every_model_on_the_same_examples(run: RunDir) -> None:
    table = Table.load(run.table)
    labels = [row.label for row in table.rows]
    assert labels == ["base", "merit/branch-00", "merit/branch-01", "merit", "joint", "joint@0.5"]
    rows = dict(zip(labels, table.rows, strict=True))
    assert rows["joint"].in_mixture < rows["base"].in_mixture  # it has learned something
    assert all(row.drift is not None for row in table.rows)
    assert rows["joint@0.5"].displacement == pytest.approx(rows["joint"].displacement / 2, rel=1e-4)
    assert rows["merit"].supervised_tokens == rows["joint"].supervised_tokens
    assert {(item.a, item.b) for item in table.comparisons} >= {("merit", "joint"), ("merit", "joint@0.5")}


def test_the_report_stands_alone(run: RunDir) -> None:
    page = run.report.read_text(encoding="utf-8")
    assert "joint@0.5" in page
    assert len(page) < 6_000_000


def test_the_cards_tell_what_the_models_are(run: RunDir) -> None:
    card = run.card.read_text(encoding="utf-8")
    assert "| joint@0.5 |" in card
    assert "\n| 1 | " in card
    merged = (run.method().merged() / "README.md").read_text(encoding="utf-8")
    groups = Partition.load(run.method().partition).groups
    assert all(name in merged for group in groups for name in group.datasets)


def test_a_rerun_does_nothing_and_a_change_redoes_what_it_must(run: RunDir) -> None:
    before = weights_of(run.root)
    count = len(read_events(run.events))
    merit_here("run", run.root)
    fresh = read_events(run.events)[count:]
    assert {event["stage"] for event in fresh} == {"report"}
    config = run.config.read_text().replace("max_new_tokens: 4", "max_new_tokens: 5")
    run.config.write_text(config)
    count = len(read_events(run.events))
    merit_here("run", run.root)
    stages = {event["stage"] for event in read_events(run.events)[count:]}
    assert stages == {"evaluate", "report"}
    assert weights_of(run.root) == before


def test_damaged_answers_of_the_init_are_given_again(run: RunDir) -> None:
    """No model is measured again for it: the report shows what drift was measured on."""
    before, table = run.drift.read_bytes(), Table.load(run.table)
    run.drift.write_bytes(before[: len(before) // 2])
    merit_here("run", run.root)
    assert run.drift.read_bytes() == before
    assert Table.load(run.table) == table
    ended = [event for event in read_events(run.events) if event["event"] == "end" and event["stage"] == "evaluate"]
    assert ended[-1]["measured"] == 0


def test_json_output_is_json(run: RunDir) -> None:
    value = json.loads(merit_here("split", run.root, "--json"))
    assert value["result"]["splitter"] == "pca"


def test_snapshots_tell_the_way(run: RunDir) -> None:
    found = json.loads(merit_here("diagnose", run.root, "--checks", "displacement", "--json"))["results"][
        "displacement"
    ]
    exact = {item["model"]: item["total"] for item in found["models"]}
    ways = found["trajectories"]
    assert ways["moments"] == [0.5, 1.0]
    for label, norms in ways["norms"].items():
        assert norms[-1] == pytest.approx(exact[label], rel=0.05)
        assert 0 < norms[0] < norms[-1]
    assert ways["ratio"][-1] == pytest.approx(found["ratio"], rel=0.05)
    assert "The way from θ0, while training" in run.report.read_text(encoding="utf-8")
