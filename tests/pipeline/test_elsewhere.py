"""Branches by other means: several processes, another trainer, some of them missing, a dataset more or less."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import HEAD, weights_of

from four_files import write_four_files
from merit.base.errors import InputError, StageError
from merit.base.files import read_json
from merit.base.locks import claim
from merit.cli.main import run as merit
from merit.context import RunContext
from merit.evaluate.scores import Table
from merit.handover.adopt import adopt_branch
from merit.pipeline import run_pipeline
from merit.run.layout import RunDir
from merit.split.partition import Partition
from merit.train import step as train_step
from merit.train.job import Ranks, run_branch_job
from merit.train.spec import BranchResult

RECIPE = (
    HEAD
    + """
train: {{epochs: 2, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32}}
evaluate: {{held_out: 4, generate: 1, max_new_tokens: 4, drift: 2, branches: false}}
"""
)


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_jobs: None) -> Path:
    """A whole run. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_four_files(folder)
    (folder / "merit.yaml").write_text(RECIPE.format(model=tiny_model))
    context = RunContext.open(folder / "merit.yaml")
    run_pipeline(context)
    return context.run.root


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> RunDir:
    shutil.copytree(merged, tmp_path / "run")
    return RunDir(tmp_path / "run")


def forget(run: RunDir, k: int) -> None:
    """As if branch `k` had been planned only."""
    branch = run.method().branch(k)
    shutil.rmtree(branch.checkpoint)
    for path in (branch.done, branch.log):
        path.unlink()


def test_two_processes_train_on_the_same_tokens(copied: RunDir) -> None:
    branch = copied.method().branch(0)
    alone = BranchResult.load(branch.done)
    forget(copied, 0)
    run_branch_job(copied.root, "merit", 0, Ranks(processes=2))
    together = BranchResult.load(branch.done)
    assert (together.supervised_tokens, together.examples) == (alone.supervised_tokens, alone.examples)
    assert together.final_loss == pytest.approx(alone.final_loss, rel=0.05)
    assert read_json(branch.spec)["branch"] == 0


def test_trl_takes_a_branch_and_brings_it_back(copied: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the README is run as it stands."""
    plain = BranchResult.load(copied.method().branch(1).done)
    forget(copied, 1)
    assert merit(["handover", str(copied.root), "--to", "trl"]) == 0
    folder = copied.handover("trl", "merit", 1)
    assert capsys.readouterr().out.splitlines()[0] == str(folder)
    command = re.findall(r"```\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)[0].splitlines()[1]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(shlex.split(command), cwd=folder, env=env, check=True, capture_output=True)
    with pytest.raises(InputError, match="branch 0 is done already; --redo replaces it"):
        adopt_branch(RunContext.open(copied.root), "merit", 0, folder)
    assert merit(["adopt", str(copied.root), "1", str(folder)]) == 0
    result = BranchResult.load(copied.method().branch(1).done)
    assert result.supervised_tokens == plain.supervised_tokens
    before = weights_of(copied.root)
    assert merit(["run", str(copied.root), "--until", "merge"]) == 0
    after = weights_of(copied.root)
    assert after["branches/01/checkpoint/model.safetensors"] == before["branches/01/checkpoint/model.safetensors"]
    assert after["merged/model.safetensors"] != before["merged/model.safetensors"]


@pytest.mark.parametrize("trainer", ["axolotl", "llamafactory"])
def test_other_trainers_get_what_they_read(trainer: str, copied: RunDir) -> None:
    import datasets

    forget(copied, 1)
    assert merit(["handover", str(copied.root), "--to", trainer]) == 0
    folder = copied.handover(trainer, "merit", 1)
    manifest = read_json(folder / "handover.json")
    if trainer == "axolotl":
        rows = datasets.Dataset.from_parquet(str(folder / "data" / "train.parquet"))
    else:
        rows = datasets.load_from_disk(str(folder / "data"))["train"]
    assert set(rows.column_names) == {"input_ids", "labels", "attention_mask"}
    assert len(rows) == manifest["examples"]
    tokens = 2 * sum(label != -100 for labels in rows["labels"] for label in labels[1:])
    assert tokens == manifest["supervised_tokens"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["learning_rate"] == 3e-3
    assert config["output_dir"] == "output"


def test_workers_share_the_models_to_evaluate(copied: RunDir) -> None:
    """A piece of one model is in another worker's hand; what the worker has measured is not measured again."""
    table = copied.table.read_bytes()
    shutil.rmtree(copied.evaluations)
    copied.stage("evaluate").unlink()
    precision = RunContext.open(copied.root).config.train.precision
    with claim(copied.piece("base", "in_mixture-0").with_suffix(".lock")) as mine:
        assert mine
        assert merit(["evaluate", str(copied.root), "--worker", "0", "--precision", precision]) == 0
    assert not copied.evaluation("base").exists()
    written = copied.evaluation("merit").stat().st_mtime_ns
    assert merit(["evaluate", str(copied.root)]) == 0
    assert copied.table.read_bytes() == table
    assert copied.evaluation("merit").stat().st_mtime_ns == written
    assert merit(["evaluate", str(copied.root), "--worker", "0", "--precision", "int4"]) == 2


def test_what_adopt_refuses(copied: RunDir, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    context = RunContext.open(copied.root)
    good = tmp_path / "good"
    shutil.copytree(copied.method().branch(1).checkpoint, good)
    forget(copied, 1)

    def refused(folder: Path, message: str, **options: object) -> None:
        with pytest.raises(InputError, match=message):
            adopt_branch(context, "merit", 1, folder, **({"tokens": planned} | options))  # type: ignore[arg-type]
        assert not copied.method().branch(1).done.exists()
        assert not copied.method().branch(1).incoming.exists()

    planned = read_json(copied.method().branch(1).spec)["planned_tokens"]

    def changed(name: str, change: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(good, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)  # type: ignore[operator]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    embedding = "model.embed_tokens.weight"
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "no model here or in output/ below")
    refused(good, "there is no handover.json beside it; give the tokens it was trained on with --tokens", tokens=None)
    refused(good, "trained on 1,000,000 supervised tokens, but the plan says", tokens=1_000_000)
    refused(changed("nan", lambda w: w[embedding].view(-1)[:1].fill_(float("nan"))), "nan at element 0 of")
    refused(changed("small", lambda w: w.update({embedding: w[embedding][:-1].clone()})), "vocabularies padded")
    refused(changed("less", lambda w: w.pop("model.norm.weight")), r"`model\.norm\.weight`: not in ")
    refused(
        changed("far", lambda w: w.update({n: torch.randn_like(t) for n, t in w.items()})), "it was not trained from"
    )
    refused(tiny_model, "these are θ0's own weights")
    state = tmp_path / "state"
    shutil.copytree(good, state)
    (state / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 10}))
    refused(state, "training stopped at step 3 of 10", tokens=None)
    result = adopt_branch(context, "merit", 1, good, tokens=planned)
    assert result.supervised_tokens == planned


def test_a_partial_run_says_so_everywhere(copied: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied
    shutil.rmtree(run.method().branch(1).root)
    run.stage("train").unlink()
    partition = Partition.load(run.method().partition)
    gone = ", ".join(partition.groups[1].datasets)
    # A deadline that has passed before anything is trained.
    assert merit(["run", str(run.root), "--partial", "--deadline", "0s"]) == 0
    out, err = capsys.readouterr()
    assert not run.method().branch(1).job.exists()  # it did not begin
    assert "continuing without the branches that failed or were late: the deadline has passed" in err
    assert "Partial: `merit` is merged without branch 1, which was not done in time." in out
    assert "only 1 of 2 branches" in Table.load(run.table).rows[1].description
    assert "Partial: " in run.card.read_text()
    assert "Partial: " in run.report.read_text() or "only 1 of 2 branches" in run.report.read_text()
    assert (
        f"**Partial**: 1 of the planned branches were not finished and are not in this model: {gone}."
        in (run.method().merged() / "README.md").read_text()
    )
    # The next run trains what is missing, and is whole again.
    assert merit(["run", str(run.root)]) == 0
    assert "Partial" not in capsys.readouterr().out


def test_what_is_done_when_the_deadline_passes_counts(
    copied: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def late(*_: object) -> None:
        raise StageError("the deadline has passed")

    monkeypatch.setattr(train_step, "run_jobs", late)
    context = RunContext.open(copied.root)
    assert train_step.train_methods(context, context.trained) == 0
    assert "continuing with all branches" in caplog.text
    copied.method().branch(1).done.unlink()
    with pytest.raises(StageError, match="the deadline has passed"):
        train_step.train_methods(context, context.trained)


def test_a_dataset_more_and_one_less(copied: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied
    before = weights_of(run.root)
    groups = [group.datasets for group in Partition.load(run.method().partition).groups]
    file = tmp_path / "again.jsonl"
    rows = [
        {"prompt": f"repeat {word} {index}", "completion": f"{word} {index}"}
        for index, word in enumerate(["cat", "dog"] * 20)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert merit(["add", str(run.root), str(file), "again"]) == 0
    told = capsys.readouterr().out
    after = weights_of(run.root)
    grown = [group.datasets for group in Partition.load(run.method().partition).groups]
    (k,) = [k for k in (0, 1) if "again" in grown[k]]
    assert sorted({*grown[k]} - {"again"}) == sorted(groups[k])
    assert grown[1 - k] == groups[1 - k]
    assert f"trained again: branch {k}, " in told
    same = f"branches/{1 - k:02d}/checkpoint/model.safetensors"
    assert after[same] == before[same]
    assert merit(["remove", str(run.root), "again"]) == 0
    assert [group.datasets for group in Partition.load(run.method().partition).groups] == groups
    assert weights_of(run.root) == before
    capsys.readouterr()
    assert merit(["add", str(run.root), str(tmp_path / "nowhere.jsonl"), "new"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert "nowhere" not in run.config.read_text()
    assert merit(["remove", str(run.root), "nothing"]) == 2
    assert "this run has no dataset 'nothing'" in capsys.readouterr().err


def test_status_and_logs(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merit(["status", str(merged), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(item["method"], item["branch"], item["state"], item["engine"]) for item in found] == [
        ("merit", 0, "done", "local"),
        ("merit", 1, "done", "local"),
    ]
    assert found[0]["done"] == found[0]["total"] > 0
    assert merit(["status", str(merged)]) == 0
    assert "supervised tokens, loss" in capsys.readouterr().out
    assert merit(["logs", str(merged), "0"]) == 0
    assert "merit branch 0: " in capsys.readouterr().out
    assert merit(["cancel", str(merged)]) == 0
    assert capsys.readouterr().out == "no job is queued or running\n"
    assert merit(["logs", str(merged), "7"]) == 2
