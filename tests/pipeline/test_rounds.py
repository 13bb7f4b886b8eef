"""Rounds: training that is merged several times is the same training, cut, with other weights after each cut."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import merit_here, start_warm, weights_of
from safetensors.torch import load_file

from four_files import write_four_files
from merit.cli.main import run as merit
from merit.conflict.similarity import ConflictResult
from merit.context import RunContext
from merit.evaluate.scores import Table
from merit.merge import rounds
from merit.run.layout import MethodDir, RunDir
from merit.train.spec import BranchResult
from merit.train.staging import store_url

RECIPE = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet, weight: 0.5}}
held_out_fraction: 0.25
calibration: {{examples: 6}}
split: {split}
train: {{epochs: 2, learning_rate: 3.0e-3, batch_tokens: 200, precision: fp32{train}}}
merge: {{weights: {rule}}}
baselines: {{joint: single{more}}}
evaluate: {{held_out: 2, generate: 0, drift: 0}}
"""
ONE_GROUP = "{splitter: manual, file: groups.yaml}"
TWO = "{splitter: pca, axes: 1}"


def recipe(
    folder: Path, model: Path, name: str, *, split: str = TWO, train: str = "", rule: str = "tokens", more: str = ""
) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(model=model, split=split, train=train, rule=rule, more=more))
    return file


def finished(file: Path, *arguments: str) -> RunDir:
    merit_here("run", file, *arguments)
    return RunDir(file.parent / "runs" / file.stem)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def log(method: MethodDir, k: int = 0) -> list[dict[str, float]]:
    return [json.loads(line) for line in method.branch(k).log.read_text().splitlines()]


def result(method: MethodDir, k: int = 0) -> BranchResult:
    return BranchResult.load(method.branch(k).done)


@pytest.fixture
def four(tmp_path: Path) -> Path:
    write_four_files(tmp_path)
    (tmp_path / "groups.yaml").write_text("all: [chat, copy, last, shout]\n")
    return tmp_path


def test_a_single_branch_is_trained_as_without_rounds_to_the_bit(four: Path, tiny_model: Path) -> None:
    whole = finished(recipe(four, tiny_model, "whole", split=ONE_GROUP)).method()
    cut = finished(recipe(four, tiny_model, "cut", split=ONE_GROUP, train=", rounds: 3")).method()
    assert [result(cut.round(1)).steps, result(cut.round(2)).steps, result(cut).steps] == [
        round(result(whole).steps * part / 3) for part in (1, 2, 3)
    ]
    for name, value in weights(whole.branch(0).checkpoint).items():
        assert torch.equal(value, weights(cut.branch(0).checkpoint)[name]), name
    one, two = result(whole), result(cut)
    assert (one.supervised_tokens, one.examples, one.final_loss) == (
        two.supervised_tokens,
        two.examples,
        two.final_loss,
    )
    rates = [[(line["step"], line["learning_rate"], line["loss"]) for line in log(method)] for method in (whole, cut)]
    assert rates[0] == rates[1]
    assert not (cut.root / "baselines" / "joint" / "rounds").exists()  # joint training has nothing to merge


def test_branches_go_on_from_the_merge(four: Path, tiny_model: Path) -> None:
    run = finished(recipe(four, tiny_model, "twice", train=", rounds: 2"))
    home, first = run.method(), run.method().round(1)
    branches = [weights(first.branch(k).checkpoint) for k in (0, 1)]
    tokens = [result(first, k).supervised_tokens for k in (0, 1)]
    for name, value in weights(first.merged()).items():
        mean = sum(n * branch[name].double() for n, branch in zip(tokens, branches, strict=True)) / sum(tokens)
        assert torch.equal(value, mean.float()), name
    spec = json.loads(home.branch(0).spec.read_text())
    assert (spec["round"], spec["model"]["path"]) == (2, "rounds/01/merged")
    start = weights(first.merged())
    assert any(not torch.equal(value, start[name]) for name, value in weights(home.branch(0).checkpoint).items())
    assert log(home)[0]["step"] == 1  # one log over both rounds
    assert result(home).steps == 2 * result(first).steps or result(home).steps == 2 * result(first).steps + 1
    assert not list(run.root.rglob("training"))
    status = merit_here("status", run.root)
    assert "merit 0 round 1" in status
    assert "merit 1 round 2" in status
    ends = [line for line in merit_here("logs", run.root, "1").splitlines() if line.startswith("merit branch 1: ")]
    assert [f" {result(method, 1).steps} steps" in line for method, line in zip((first, home), ends, strict=True)] == [
        True,
        True,
    ]
    assert merit(["handover", str(run.root), "--to", "trl"]) == 2  # another trainer knows of no rounds
    before = weights_of(run.root)
    assert "unchanged" in _said(four / "twice.yaml")
    assert weights_of(run.root) == before


def test_the_first_round_is_watched_and_fewer_rounds_leave_none_of_the_others(
    four: Path, tiny_model: Path, warm_jobs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(four, tiny_model, "fewer", train=", rounds: 3")
    run = finished(file, "--until", "rounds")
    assert not run.method().branches.exists()  # those of the last round
    assert merit_here("logs", run.root, "1").count("merit branch 1: ") == 2
    assert merit(["logs", str(run.root), "2"]) == 2
    assert "no branch 2 of 'merit' is planned here; planned are 0 and 1" in capsys.readouterr().err
    recipe(four, tiny_model, "fewer", train=", rounds: 2")
    finished(file, "--until", "rounds")
    assert [folder.name for folder in run.method().rounds.iterdir()] == ["01"]


def test_every_round_is_in_the_table_and_a_baseline_may_have_its_own(
    four: Path, tiny_model: Path, warm_jobs: None
) -> None:
    more = ", once: {splitter: pca, rounds: 1}, again: {branches: merit, merge: actmat}"
    run = finished(recipe(four, tiny_model, "table", train=", rounds: 2", more=more))
    rows = {row.label: row for row in Table.load(run.table).rows}
    assert {"merit/round-1", "merit", "once", "again", "joint"} <= rows.keys()
    assert (rows["merit/round-1"].kind, rows["merit"].kind) == ("round", "merge")
    assert "after round 1 of 2" in rows["merit/round-1"].description
    assert rows["merit/round-1"].supervised_tokens < rows["merit"].supervised_tokens
    assert rows["merit"].supervised_tokens == rows["once"].supervised_tokens == rows["joint"].supervised_tokens
    size = (run.method().branch(0).checkpoint / "model.safetensors").stat().st_size
    sent = {"merit/round-1": 2, "merit": 2 * 3, "once": 2, "again": 2 * 3}
    assert {label: rows[label].bytes_moved for label in sent} == {label: n * size for label, n in sent.items()}
    joint = result(run.method("joint"))
    assert rows["joint"].bytes_moved == 2 * 4 * ConflictResult.load(run.conflict).parameters * joint.steps
    assert rows["joint"].machine_seconds == joint.seconds / 2
    first, whole = ([result(method, k).seconds for k in range(2)] for method in (run.method().round(1), run.method()))
    longest = max(first) + max(after - before for before, after in zip(first, whole, strict=True))
    assert rows["merit"].machine_seconds == rows["again"].machine_seconds == pytest.approx(longest)
    assert rows["merit/round-1"].machine_seconds == max(first)
    assert not run.method("once").rounds.exists()
    assert not run.method("again").root.joinpath("rounds").exists()
    assert "round-1" in run.report.read_text()


def test_moments_are_carried_or_not(four: Path, tiny_model: Path) -> None:
    kept = finished(recipe(four, tiny_model, "kept", train=", rounds: 2"), "--until", "merge")
    fresh = finished(recipe(four, tiny_model, "fresh", train=", rounds: 2, carry_optimizer: false"), "--until", "merge")
    one, two = (weights(run.method().round(1).merged()) for run in (kept, fresh))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    one, two = (weights(run.method().merged()) for run in (kept, fresh))
    assert any(not torch.equal(value, two[name]) for name, value in one.items())


def test_a_rule_of_layers_counts_from_the_last_merge(four: Path, tiny_model: Path) -> None:
    run = finished(recipe(four, tiny_model, "act", train=", rounds: 2", rule="actmat"), "--until", "merge")
    home = run.method()
    start, base = weights(home.round(1).merged()), weights(tiny_model)
    branches = [weights(home.branch(k).checkpoint) for k in (0, 1)]
    tokens = [result(home, k).supervised_tokens for k in (0, 1)]
    name = "model.layers.0.mlp.up_proj.weight"
    steps = [(branch[name].double() - start[name].double()).numpy() for branch in branches]
    grams = [step.T @ step for step in steps]
    total = sum(grams)
    level = 0.1 * total.trace() / len(total)
    mean = sum(n * step for n, step in zip(tokens, steps, strict=True)) / sum(tokens)
    pulled = sum(step @ gram for step, gram in zip(steps, grams, strict=True)) + level * mean
    wanted = (
        start[name].double()
        + torch.linalg.solve(
            torch.from_numpy(total) + level * torch.eye(len(total)).double(), torch.from_numpy(pulled).T
        ).T
    )
    assert torch.allclose(weights(home.merged())[name].double(), wanted, rtol=0, atol=1e-7)
    record = json.loads(home.merge_record.read_text())
    moved = sum(float((v.double() - base[n].double()).square().sum()) for n, v in weights(home.merged()).items())
    assert record["displacement"]["1"] == pytest.approx(moved**0.5, rel=1e-5)
    merit_here("merge", "--verify", home.merged())


def test_an_outer_step_is_nesterov_momentum_over_the_rounds(four: Path, tiny_model: Path, warm_jobs: None) -> None:
    more = ", again: {branches: merit, merge: uniform}"
    run = finished(
        recipe(four, tiny_model, "outer", train=", rounds: 3, outer: {rate: 0.7, momentum: 0.9}", more=more),
        *("--until", "merge"),
    )
    home = run.method()
    methods = [home.round(1), home.round(2), home]
    tokens = [[result(method, k).supervised_tokens for k in (0, 1)] for method in methods]
    branches = [[weights(method.branch(k).checkpoint) for k in (0, 1)] for method in methods]
    for name, start in weights(tiny_model).items():
        point, momentum = start.double().numpy(), 0.0
        for number, method in enumerate(methods):
            pair = [n * one[name].double().numpy() for n, one in zip(tokens[number], branches[number], strict=True)]
            gradient = point - sum(pair) / sum(tokens[number])
            momentum = 0.9 * momentum + gradient
            point = point - 0.7 * (gradient + 0.9 * momentum)
            found = weights(method.merged())[name].numpy()
            assert np.allclose(found, point, rtol=1e-6, atol=1e-7), (name, number)
            point = found.astype(float)  # the next round goes on from what was written
            if method is not home:
                kept = weights(method.momentum)[name].numpy()
                assert np.allclose(kept, momentum, rtol=1e-6, atol=1e-10), (name, number)
                momentum = kept.astype(float)
    assert not home.momentum.exists()  # no round comes after it
    spec = json.loads(home.branch(0).spec.read_text())
    assert "outer" not in spec["train"]  # a branch only knows where it starts
    again = run.method("again").merged()
    assert any(not torch.equal(value, weights(again)[name]) for name, value in weights(home.merged()).items())
    for method in methods:
        merit_here("merge", "--verify", method.merged())
    before = weights_of(run.root)
    (home.round(1).momentum / "model.safetensors").unlink()
    merit_here("run", run.root, "--until", "merge")
    assert weights_of(run.root) == before  # the momentum is made anew, and nothing else changes


def test_one_round_is_diagnosed_from_where_it_started(
    four: Path, tiny_model: Path, warm_jobs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(recipe(four, tiny_model, "looked", train=", rounds: 2"), "--until", "merge")
    for number, base, method in (
        (1, tiny_model, run.method().round(1)),
        (2, run.method().round(1).merged(), run.method()),
    ):
        told = merit_here("diagnose", run.root, "--checks", "displacement", "--round", str(number))
        assert f"diagnostics/round-{number:02d}" in told
        found = json.loads((run.diagnostics / f"round-{number:02d}" / "displacement.json").read_text())
        start = weights(base)
        far = [
            sum(
                float((value.double() - start[name].double()).square().sum()) for name, value in weights(folder).items()
            )
            for folder in (method.branch(0).checkpoint, method.branch(1).checkpoint, method.merged())
        ]
        norms = {item["model"]: item["total"] for item in found["models"]}
        assert [norms[label] for label in ("branch 0", "branch 1", "merge")] == pytest.approx(
            [value**0.5 for value in far], rel=1e-4
        )
    assert not run.diagnostic("displacement").exists()  # that of the whole training is another
    assert merit(["diagnose", str(run.root), "--round", "3"]) == 2
    assert "`--round`: 3, but the main method of this run has 2 rounds" in capsys.readouterr().err


def test_rate_one_without_momentum_is_the_plain_merge(four: Path, tiny_model: Path, warm_jobs: None) -> None:
    plain = finished(recipe(four, tiny_model, "plainly", train=", rounds: 2"), "--until", "merge")
    stepped = finished(
        recipe(four, tiny_model, "stepped", train=", rounds: 2, outer: {rate: 1, momentum: 0}"), "--until", "merge"
    )
    assert weights_of(plain.root) == weights_of(stepped.root)


def test_preparation_is_not_cut_into_rounds(four: Path, tiny_model: Path, warm_jobs: None) -> None:
    file = recipe(four, tiny_model, "prepared", train=", rounds: 2")
    file.write_text(file.read_text() + "prepare: {stages: [{epochs: 1}]}\n")
    run = finished(file, "--until", "prepare")
    branch = run.prepare.method().branch(0)
    state = [json.loads(line)["epoch"] for line in branch.log.read_text().splitlines()]
    assert state[-1] == pytest.approx(1)
    assert "rounds" not in json.loads(branch.spec.read_text())["train"]


def test_too_many_rounds_and_adapters_are_refused(
    four: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(four, tiny_model, "many", train=", rounds: 50")
    assert merit(["run", str(file)]) == 2
    assert "`train.rounds`: 50, but `chat` has only" in capsys.readouterr().err
    assert not (four / "runs" / "many" / "branches").exists()
    file = recipe(four, tiny_model, "lora", train=", rounds: 2, lora: {r: 2}")
    assert merit(["check", str(file)]) == 2
    assert "an adapter cannot go on from a merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("batch_tokens: 2000", "4, but a branch of merit has at most 2 optimizer steps: take fewer rounds, or lower"),
        ("batch_tokens: 400", "4, but merit branch 0 has only about 3 optimizer steps: take fewer rounds, or lower"),
    ],
)
def test_more_rounds_than_steps_are_refused_before_training(
    more: str, said: str, four: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(four, tiny_model, "steps", split="{splitter: random, axes: 1}", train=", rounds: 4")
    file.write_text(file.read_text().replace("epochs: 2, ", "").replace("batch_tokens: 200", more))
    assert merit(["run", str(file)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"`train.rounds`: {said} `train.batch_tokens`" in error
    assert not (four / "runs" / "steps" / "rounds").exists()


def test_a_check_finds_too_many_rounds(four: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(four, tiny_model, "checked", train=", rounds: 50")
    assert merit(["check", str(file)]) == 2
    assert "`train.rounds`: 50, but `chat` has only" in capsys.readouterr().err
    assert not (four / "runs").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_sharded_branch_has_no_rounds(
    kind: str, four: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (four / "shards.yaml").write_text(f"distributed_type: {kind}\nnum_processes: 2\n")
    file = recipe(four, tiny_model, "sharded", train=", rounds: 2")
    file.write_text(file.read_text() + "launch: {accelerate: shards.yaml}\n")
    assert merit(["check", str(file)]) == 2
    assert f"`train.rounds`: {kind} shards a branch, and its parts cannot go on from a merge" in capsys.readouterr().err
    file.write_text(file.read_text().replace(", rounds: 2", ""))
    assert merit(["check", str(file)]) == 0


def test_what_rounds_rule_out_is_one_line(four: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(four, tiny_model, "alone", train=", rounds: 2")

    def refused(message: str, *arguments: str | Path) -> None:
        assert merit([*map(str, arguments)]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]

    refused("`--partial`: a round starts from all branches of the round before", "run", file, "--partial")
    assert not (four / "runs").exists()
    run = finished(file, "--until", "split")
    before = run.config.read_bytes()
    refused("`train.rounds`: branches that are merged in rounds are trained by merit", "adopt", run.root, "0", four)
    refused("`train.rounds`: in rounds every branch depends on all others", "remove", run.root, "shout")
    refused("`train.rounds`: in rounds every branch depends on all others", "add", run.root, four / "last.csv", "new")
    assert run.config.read_bytes() == before
    lora = recipe(four, tiny_model, "lora", train=", lora: {r: 2}", more=", twice: {splitter: pca, rounds: 2}")
    refused("`baselines.twice.rounds`: an adapter cannot go on from a merge", "check", lora)


def test_one_round_is_what_it_was(four: Path, tiny_model: Path) -> None:
    run = finished(recipe(four, tiny_model, "plain"), "--until", "split")
    assert "rounds" not in yaml.safe_load(run.config.read_text())["train"]


def _said(file: Path) -> str:
    import io

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert merit(["run", str(file)]) == 0
    return err.getvalue()


def test_killed_and_resumed_it_ends_in_the_same_bits(four: Path, tiny_model: Path, warm_jobs: None) -> None:
    file = recipe(four, tiny_model, "calm", train=", rounds: 3, checkpoint_minutes: 0.004, epochs: 6")
    file.write_text(file.read_text().replace("epochs: 2, ", ""))
    begun = time.monotonic()
    assert start_warm("run", file, "-o", four / "undisturbed").wait() == 0
    whole = time.monotonic() - begun
    rng, kills, wanted = random.Random(7), 0, int(os.environ.get("MERIT_KILLS", "6"))
    while kills < wanted:
        process = start_warm("run", file, "-o", four / "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.1, 1.8) / wanted * whole)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills >= wanted / 3
    assert start_warm("run", file, "-o", four / "killed").wait() == 0
    assert weights_of(four / "killed") == weights_of(four / "undisturbed")
    events = [json.loads(line) for line in (four / "killed" / "events.jsonl").read_text().splitlines()]
    ends = [e for e in events if e.get("event") == "end" and e["stage"].startswith("train merit ")]
    done = [e["stage"] for e in ends if "found" not in e]
    assert max(done.count(name) for name in set(done)) <= 3  # a branch's job ends once in every round


def test_through_a_store_it_ends_alike(four: Path, tiny_model: Path) -> None:
    """A store's job may have other threads, so sums in another order; a round left out would change far more."""
    here = finished(recipe(four, tiny_model, "here", train=", rounds: 2"), "--until", "merge").method()
    file = recipe(four, tiny_model, "there", train=", rounds: 2")
    file.write_text(file.read_text() + f"launch: {{store: {(four / 'store').as_uri()}}}\n")
    there = finished(file, "--until", "merge").method()
    start = weights(tiny_model)
    for one, two in ((here.round(1), there.round(1)), (here, there)):
        found, wanted = weights(two.merged()), weights(one.merged())
        far = sum(float((wanted[name] - start[name]).square().sum()) for name in wanted) ** 0.5
        off = sum(float((wanted[name] - found[name]).square().sum()) for name in wanted) ** 0.5
        assert off < 0.02 * far
    assert [result(here, k).supervised_tokens for k in (0, 1)] == [result(there, k).supervised_tokens for k in (0, 1)]
    assert not [path for path in (four / "store").rglob("checkpoint-*") if path.is_dir()]


def test_the_rounds_of_a_baseline_depend_on_its_own_rule(four: Path, tiny_model: Path) -> None:
    file = recipe(four, tiny_model, "own", more=", rnd: {splitter: random, rounds: 2, merge: uniform}")
    finished(file, "--until", "split")
    before = rounds.depends(RunContext.open(file))
    file.write_text(file.read_text().replace("merge: uniform", "merge: actmat"))
    after = rounds.depends(RunContext.open(file))
    assert [name for name in before if before[name] != after[name]] == ["merge"]


def test_a_store_may_be_a_plain_path(four: Path, tiny_model: Path) -> None:
    """Its jobs look for the run's mirror there, not for a run."""
    file = recipe(four, tiny_model, "plain", train=", rounds: 2")
    file.write_text(file.read_text() + "launch: {store: plain store}\n")
    run = finished(file, "--until", "merge")
    assert result(run.method(), 0).supervised_tokens > 0
    assert (four / "plain store" / "plain" / "branches" / "00" / "DONE").is_file()
    assert not (four / "plain store" / "plain" / "config.yaml").exists()
    assert store_url(RunContext.open(run.root)) == f"file://{four}/plain store/plain"
