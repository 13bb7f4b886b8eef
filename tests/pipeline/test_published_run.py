"""A whole run with `method: published`: every setting of the paper, seen in what the run leaves behind."""

from __future__ import annotations

from pathlib import Path

import yaml

from four_files import write_four_files
from merit.base.files import read_json
from merit.cli.main import run as merit
from merit.gradients.store import SketchStore
from merit.run.layout import RunDir
from merit.split.partition import Partition
from merit.train.spec import BranchResult

RECIPE = """
method: published
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet, weight: 0.5}}
held_out_fraction: 0.25
train: {{epochs: 1, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32}}
evaluate: {{held_out: 2, generate: 0}}
diagnose: {{checks: [lmc], examples: 2}}
"""


def test_a_run_as_published(tiny_model: Path, tmp_path: Path) -> None:
    write_four_files(tmp_path)
    (tmp_path / "merit.yaml").write_text(RECIPE.format(model=tiny_model))
    assert merit(["run", str(tmp_path / "merit.yaml")]) == 0
    run = RunDir(tmp_path / "runs" / "merit")
    resolved = yaml.safe_load(run.config.read_text())
    assert resolved["method"] == "published"
    assert {key: resolved["split"][key] for key in ("splitter", "axes", "centre", "balance")} == {
        "splitter": "pca",
        "axes": 2,
        "centre": "columns",
        "balance": "samples",
    }
    store = SketchStore.open(run.gradients)
    assert str(store.info.spec) == "flat stride 5, offset 0"
    assert store.numbers == -(-store.info.layout.parameters // 5)
    assert read_json(run.axes)["centre"] == "columns"
    partition = Partition.load(run.method().partition)
    assert [len(group.datasets) for group in partition.groups] == [1] * 4
    assert {cut.balance for cut in partition.cuts} == {"samples"}
    merge = read_json(run.method().merge_record)
    tokens = [BranchResult.load(run.method().branch(k).done).supervised_tokens for k in range(4)]
    assert merge["weights"] == [count / sum(tokens) for count in tokens]
    segments = read_json(run.root / "diagnostics" / "lmc.json")["held_out"]
    assert {len(segment["t"]) for segment in segments} == {21}
