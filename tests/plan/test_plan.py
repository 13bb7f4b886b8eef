"""The plan against values computed by hand: 1M parameters, three datasets, two groups."""

from __future__ import annotations

from typing import Any

import pytest

from merit.config import RunConfig
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.plan.costs import ModelFacts, Plan, flops, plan_rows
from merit.plan.estimate import Estimate
from merit.split.partition import Group, Partition

N = 1_000_000
MODEL = ModelFacts(
    parameters=N,
    trainable=N,
    bytes_per_parameter=2,
    hidden={"hidden_size": 10, "num_hidden_layers": 2, "vocab_size": 100},
)


def dataset(name: str, examples: int, tokens: int, supervised: int, scoring: str | None = None) -> DatasetSummary:
    return DatasetSummary(
        name=name,
        source=f"{name}.jsonl",
        format="qa",
        weight=2.0 if name == "c" else 1.0,
        train=SplitCounts(examples=examples, tokens=tokens, supervised_tokens=supervised),
        held_out=SplitCounts(examples=10, tokens=500, supervised_tokens=100),
        length_quantiles={"1.0": 80},
        truncated=0,
        duplicates=0,
        skipped=0,
        scoring=scoring,
        fingerprint="0",
        rendered=[],
    )


MIXTURE = Mixture(
    datasets=[
        dataset("a", 100, 6000, 1000, "reference"),
        dataset("b", 400, 12000, 3000),
        dataset("c", 50, 3000, 1000),  # weight 2: 6000 tokens, 2000 of them supervised
    ],
    unseen=[],
    max_length=128,
    tokenizer_fingerprint="0",
)


def plan(*facts: Any, **known: Any) -> Plan:
    return Estimate(*facts, **known).plan


def config(**fields: Any) -> RunConfig:
    base: dict[str, Any] = {
        "model": "m",
        "mixture": {name: {"path": f"{name}.jsonl"} for name in "abc"},
        "split": {"axes": 1},
        "calibration": {"examples": 200, "batch_tokens": 100},
        "train": {"epochs": 2, "batch_tokens": 1000, "micro_batch_tokens": 100},
        "evaluate": {"held_out": 5, "generate": 2, "max_new_tokens": 8, "batch_tokens": 50},
    }
    return RunConfig.model_validate({**base, **fields})


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(config(), MIXTURE, MODEL, tokens_per_second=100)


def stage(made: Plan, name: str) -> Any:
    return next(item for item in made.stages if item.stage == name)


def test_gradients(made: Plan) -> None:
    # a: all 100 examples, 6000 tokens; b: 200 of 400, 6000; c: all 50, 3000 (weights are not the calibration's)
    found = stage(made, "gradients")
    assert found.tokens == 15_000
    assert found.supervised_tokens == 1000 + 1500 + 1000
    assert found.flops == 6 * N * 15_000
    assert found.hours == pytest.approx(15_000 / 100 / 3600)
    # Two halves of fp32; ten columns are too few to be folded; and the companion's 65,536 hashed numbers.
    assert found.disk_bytes == 2 * 4 * 3 * (N + 65_536)
    assert found.memory_bytes == 4 * N + 100 * (34 * 10 * 2 + 8 * 100)


def test_groups_are_balanced_as_far_as_the_largest_dataset_allows(made: Plan) -> None:
    # 24,000 tokens and 6,000 supervised ones an epoch; b alone has half of the latter
    assert [branch.supervised_tokens for branch in made.main.branches] == [6000, 6000]
    assert [branch.tokens for branch in made.main.branches] == [24_000, 24_000]
    assert [branch.steps for branch in made.main.branches] == [24, 24]
    heavy = MIXTURE.model_copy(update={"datasets": [dataset("a", 10, 90_000, 9000), *MIXTURE.datasets[1:]]})
    branches = plan(config(), heavy, MODEL).main.branches
    assert [branch.supervised_tokens for branch in branches] == [18_000, 10_000]


def test_a_known_partition_is_used() -> None:
    groups = [Group(datasets=["a"], tokens=1000), Group(datasets=["b", "c"], tokens=5000)]
    partition = Partition(splitter="pca", groups=groups, scores={}, cuts=[])
    made = plan(config(), MIXTURE, MODEL, tokens_per_second=100, partitions={"merit": partition})
    assert [branch.tokens for branch in made.main.branches] == [12_000, 36_000]
    assert made.main.longest_hours == pytest.approx(36_000 / 100 / 3600)
    assert made.main.hours == pytest.approx(48_000 / 100 / 3600)
    assert not any("not made yet" in line for line in made.assumptions)


def test_joint_training_is_planned_even_when_it_is_not_run(made: Plan) -> None:
    assert not made.joint.configured
    assert [branch.tokens for branch in made.joint.branches] == [48_000]
    assert made.joint.hours == made.main.hours == pytest.approx(48_000 / 100 / 3600)
    assert stage(made, "train").tokens == 48_000
    run = plan(config(baselines={"all": "single"}), MIXTURE, MODEL)
    assert run.joint.name == "all"
    assert len(run.methods) == 2
    assert stage(run, "train").tokens == 96_000


def test_a_soup_trains_on_everything_in_every_branch() -> None:
    made = plan(config(baselines={"soup": {"splitter": "replicate", "axes": 2}}), MIXTURE, MODEL)
    assert [branch.tokens for branch in made.methods[1].branches] == [48_000] * 4


def test_training_memory_and_disk(made: Plan) -> None:
    found = stage(made, "train")
    assert found.memory_bytes == 16 * N + 100 * (34 * 10 * 2 + 8 * 100)
    assert found.disk_bytes == 2 * 4 * N + 2 * 12 * N


def test_lora() -> None:
    model = MODEL.model_copy(update={"trainable": 1000})
    made = plan(
        config(train={"epochs": 2, "lora": {}, "micro_batch_tokens": 100}), MIXTURE, model, tokens_per_second=100
    )
    assert made.main.branches[0].flops == 4 * N * 24_000
    assert stage(made, "train").memory_bytes == 2 * N + 16_000 + 100 * (34 * 10 * 2 + 8 * 100)
    assert made.traffic is not None
    assert made.traffic.joint_step_per_worker == 4000


def test_merge(made: Plan) -> None:
    found = stage(made, "merge")
    assert found.disk_bytes == 4 * N
    assert found.hours == pytest.approx((2 * 4 * N + 4 * N) / 500e6 / 3600)
    half = plan(config(merge={"dtype": "bfloat16", "scales": [1.0, 2.0]}), MIXTURE, MODEL)
    assert stage(half, "merge").disk_bytes == 2 * 2 * N


def test_evaluation(made: Plan) -> None:
    # Scoring: 5 of 10 held-out examples of three datasets, 50 tokens each. Answering: 2 of a's, 40 of prompt + 8.
    # θ0 and the merge do both, two branches are scored only.
    found = stage(made, "evaluate")
    assert found.tokens == 4 * 3 * 250 + 2 * 2 * (40 + 8)
    assert found.flops == 2 * N * found.tokens
    assert found.hours == pytest.approx(found.tokens / 300 / 3600)
    assert found.memory_bytes == 4 * N + 4 * 50 * 100


def test_traffic(made: Plan) -> None:
    traffic = made.traffic
    assert traffic is not None
    assert traffic.theta0_out == 2 * 2 * N
    assert traffic.data_out == 8 * 24_000
    assert traffic.checkpoints_back == 2 * 4 * N
    assert traffic.total == 4 * N + 192_000 + 8 * N
    assert traffic.joint_steps == 48
    assert traffic.joint_step_per_worker == 4 * N  # 2 · (2 − 1)/2 · 4 bytes
    assert traffic.joint_total == 2 * 4 * N * 48


def test_rounds_move_and_merge_as_often() -> None:
    rounds = {"epochs": 2, "batch_tokens": 1000, "micro_batch_tokens": 100, "rounds": 3}
    known = {"baselines": {"joint": "single", "once": {"splitter": "random", "rounds": 1}}}
    once = plan(config(**known), MIXTURE, MODEL, tokens_per_second=100)
    made = plan(config(train=rounds, **known), MIXTURE, MODEL, tokens_per_second=100)
    assert [method.rounds for method in made.methods] == [3, 1, 1]
    assert made.main.longest_hours == once.main.longest_hours
    traffic = made.traffic
    assert traffic is not None
    assert (traffic.checkpoints_back, traffic.merges_out) == (3 * 2 * 4 * N, 2 * 2 * 4 * N)
    assert traffic.states_out == 0  # a machine keeps its own
    assert traffic.total == 4 * N + 192_000 + 5 * 8 * N
    stored = plan(config(train=rounds, launch={"store": "memory://x"}), MIXTURE, MODEL).traffic
    assert stored is not None
    assert stored.states_out == 2 * 2 * 12 * N  # weights and two moments, twice
    # The main method reads its two branches three times; its merge is written three times, the others' once.
    assert stage(made, "merge").disk_bytes == 5 * 4 * N
    assert stage(made, "merge").hours == pytest.approx(((3 * 2 + 1 + 2) * 4 * N + 5 * 4 * N) / 500e6 / 3600)
    outer = plan(config(train={**rounds, "outer": {"momentum": 0.9}}, **known), MIXTURE, MODEL)
    assert stage(outer, "merge").disk_bytes == (5 + 2) * 4 * N
    assert stage(made, "train").disk_bytes == (3 * 2 + 1 + 2) * 4 * N + 2 * 12 * N + 2 * 12 * N
    assert stage(made, "evaluate").tokens - stage(once, "evaluate").tokens == 2 * (3 * 250 + 2 * (40 + 8))
    assert any("After each of 3 rounds" in line for line in made.assumptions)
    assert plan_rows(made)[2][0] == "train merit (2 branches, 3 rounds)"


def test_without_a_speed_there_are_no_hours() -> None:
    made = plan(config(), MIXTURE, MODEL)
    assert made.main.hours is None
    assert made.main.longest_hours is None
    assert stage(made, "gradients").hours is None
    assert any("No speed was given" in line for line in made.assumptions)


def test_one_dataset_has_no_conflict_to_measure() -> None:
    mixture = MIXTURE.model_copy(update={"datasets": MIXTURE.datasets[:1]})
    made = plan(config(mixture={"a": {"path": "a"}}, split={"splitter": "single", "axes": 1}), mixture, MODEL)
    assert stage(made, "gradients").tokens == stage(made, "gradients").disk_bytes == 0
    assert made.traffic is None
    assert made.main is made.methods[0]
    assert made.joint is made.methods[0]


def test_an_unknown_shape_is_admitted() -> None:
    made = plan(config(), MIXTURE, MODEL.model_copy(update={"hidden": {}}))
    assert stage(made, "train").memory_bytes == 16 * N
    assert any("activations are not counted" in line for line in made.assumptions)


def test_a_plan_is_a_record(made: Plan) -> None:
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_rows(made: Plan) -> None:
    rows = plan_rows(made)
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == [
        "gradients",
        "train merit (2 branches)",
        "train joint, if it were run",
        "merge",
        "evaluate",
        "whole run",
    ]
    merit = rows[2]
    assert merit[1:6] == ["48 k", "12 k", "288 GFLOP", "8 min", "4 min"]
    assert rows[3][-1] == "384 MB on 2 workers"
    assert all(isinstance(cell, str) for row in rows for cell in row)


def test_flops_have_units() -> None:
    assert [flops(x) for x in (5.0, 3.2e17, 1e24)] == ["5 FLOP", "320 PFLOP", "1e+03 ZFLOP"]


def test_a_sketch_of_the_branches_inputs_is_counted(made: Plan) -> None:
    wanted = plan(
        config(merge={"weights": "regmean"}, baselines={"all": "single"}), MIXTURE, MODEL, tokens_per_second=100
    )
    each = round(0.1 * 4 * N)
    one_more = 4 * N  # joint training is not merged, so nothing is measured of it
    assert stage(wanted, "train").disk_bytes == stage(made, "train").disk_bytes + 2 * each + one_more
    assert wanted.traffic is not None
    assert made.traffic is not None
    assert wanted.traffic.total == made.traffic.total + 2 * each
    train = {"rounds": 3}
    once, often = (
        plan(config(merge=merge, train=train), MIXTURE, MODEL)
        for merge in ({"also": ["regmean"]}, {"weights": "regmean"})
    )
    left = stage(plan(config(train=train), MIXTURE, MODEL), "train").disk_bytes
    assert [stage(one, "train").disk_bytes - left for one in (once, often)] == [2 * each, 2 * 3 * each]
    (line,) = (line for line in wanted.assumptions if "sketch" in line)
    assert "inputs on 64 of its examples" in line
    assert "at most 400 kB beside its checkpoint" in line
    assert not any("sketch" in line for line in made.assumptions)
