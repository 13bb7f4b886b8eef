"""A run in TensorBoard: branches, rounds and the merge below one folder, with the figures that the run's files have."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import merit_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from four_files import write_four_files
from merit.diagnose.checks.gain import GainResult
from merit.diagnose.checks.lmc import LmcResult
from merit.evaluate.scores import Table
from merit.merge.step import MethodMerge
from merit.run.events import read_events
from merit.run.layout import RunDir

RECIPE = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet}}
held_out_fraction: 0.25
split: {{splitter: random, axes: 1}}
train: {{batch_tokens: 200, precision: fp32, rounds: 2, trl: {{report_to: tensorboard}}}}
baselines: {{joint: {{splitter: single, scales: [1.0, 0.5]}}}}
evaluate: {{held_out: 2, generate: 0, drift: 0}}
diagnose: {{checks: [gain, lmc], points: 3, examples: 2}}
"""


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_branches_rounds_and_merge(
    tmp_path: Path, tiny_model: Path, warm_jobs: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_four_files(tmp_path)
    file = tmp_path / "spring.yaml"
    file.write_text(RECIPE.format(model=tiny_model))
    merit_here("run", file)
    run = RunDir(tmp_path / "runs" / "spring")
    shown = {path.parent.relative_to(run.root).as_posix() for path in run.root.rglob("events.out.tfevents.*")}
    branches = {f"{home}branches/0{k}/tensorboard" for home in ("", "rounds/01/") for k in range(2)}
    assert shown == branches | {"baselines/joint/branches/00/tensorboard", "tracking/merge"}
    # The second round goes on where the first one ends.
    first, second = (
        [step for step, _ in scalars(method.branch(0).tensorboard)["train/loss"]]
        for method in (run.method().round(1), run.method())
    )
    assert first + second == list(range(1, len(first + second) + 1))

    found = scalars(run.tracking / "merge")
    rows = {row.label: row for row in Table.load(run.table).rows}
    close = pytest.approx
    assert found["in_mixture/base"] == [(0, close(rows["base"].in_mixture))]
    curve = [(1, close(rows["merit/round-1"].in_mixture)), (2, close(rows["merit"].in_mixture))]
    assert found["in_mixture/merit"] == curve
    assert found["in_mixture/joint"] == [(1, close(rows["joint"].in_mixture))]
    assert found["in_mixture/joint_0.5"] == [(1, close(rows["joint@0.5"].in_mixture))]  # MLflow takes no @
    merges = [MethodMerge.load(method.merge_record) for method in (run.method().round(1), run.method())]
    for k in range(2):
        told = [(n + 1, close(merge.weights[k])) for n, merge in enumerate(merges)]
        assert found[f"weight/merit/branch-0{k}"] == told
        told = [(n + 1, close(merge.branch_displacement[k])) for n, merge in enumerate(merges)]
        assert found[f"displacement/merit/branch-0{k}"] == told
    gain, lmc = GainResult.load(run.diagnostic("gain")), LmcResult.load(run.diagnostic("lmc"))
    assert found["gain/held_out"] == [(2, close(gain.held_out.gain.value))]
    assert found["gain/train_low"] == [(2, close(gain.train.gain.low))]
    assert found["lmc/barrier_held_out"] == [(2, close(max(item.barrier for item in lmc.held_out)))]
    assert not any("exact" in tag for tag in found)  # nothing was answered

    # Once a run: again only if there is something new to tell, and then in place of what was there.
    before = list((run.tracking / "merge").iterdir())
    merit_here("run", file)
    assert "track: unchanged, kept" in caplog.text
    assert list((run.tracking / "merge").iterdir()) == before
    file.write_text(
        file.read_text().replace("checks: [gain, lmc]", "checks: [gain]").replace("examples: 2", "examples: 3")
    )
    merit_here("run", file)
    found = scalars(run.tracking / "merge")
    assert found["gain/held_out"] == [(2, close(GainResult.load(run.diagnostic("gain")).held_out.gain.value))]
    assert not any(tag.startswith("lmc/") for tag in found)  # it was measured on other examples
    ends = [event for event in read_events(run.events) if (event.get("stage"), event["event"]) == ("track", "end")]
    assert len(ends) == 2
