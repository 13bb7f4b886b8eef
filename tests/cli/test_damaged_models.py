"""Damage behind training: one branch or one merge is made again, with the same result, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from command import Command, config_text
from test_damage import cut, flip

REST = "evaluate: {held_out: 2, generate: 0}"


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory, warm_jobs) -> Path:
    from merit.cli.main import run

    folder = tmp_path_factory.mktemp("finished")
    for name in ("a", "b"):
        lines = [f'{{"prompt": "{name} {i}", "completion": "{name}{i}"}}\n' for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    head, _, tail = config_text(tiny_model, rest=REST).partition("  chat:")
    file = folder / "merit.yaml"
    file.write_text(head + "  a: {path: a.jsonl}\n  b: {path: b.jsonl}\n" + tail[tail.index("split:") :])
    assert run(["run", str(file), "-o", str(folder / "run")]) == 0
    return folder / "run"


def weights(run: Path) -> dict[str, str]:
    files = sorted(run.rglob("*.safetensors"))
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("branches/00/DONE", cut, "training the branches of merit (branches/00/DONE damaged or gone)"),
        ("branches/01/DONE", flip, "training the branches of merit (branches/01/DONE damaged or gone)"),
        ("merge.json", flip, "merging the branches of merit (merge.json damaged or gone)"),
        ("merged/model.safetensors", flip, "merging the branches of merit (merged/model.safetensors damaged or gone)"),
        ("merged/tokenizer.json", cut, "merging the branches of merit (merged/tokenizer.json damaged or gone)"),
        (
            "evaluation/table.json",
            cut,
            "evaluating θ0, branches and merges on held-out examples (evaluation/table.json damaged or gone)",
        ),
        (
            "evaluation/base.json",
            flip,
            "evaluating θ0, branches and merges on held-out examples (evaluation/base.json damaged or gone)",
        ),
    ],
)
def test_a_damaged_result_is_made_again(name, damage, says, merit: Command, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = weights(run)
    assert len(before) == 3
    untouched = [path.stat().st_mtime_ns for path in run.rglob("branches/*/checkpoint/*") if name[:11] not in str(path)]
    damage(run / name)
    outcome = merit("run", run)
    assert outcome.code == 0, outcome
    assert says in " ".join(outcome.lines)
    assert weights(run) == before
    after = [path.stat().st_mtime_ns for path in run.rglob("branches/*/checkpoint/*") if name[:11] not in str(path)]
    assert after == untouched


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_branch_that_is_damaged_before_it_is_merged_is_trained_again(damage, merit: Command, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = weights(run)
    damage(run / "branches" / "01" / "checkpoint" / "model.safetensors")
    (run / "merge.json").unlink()
    outcome = merit("run", run)
    assert outcome.code == 1, outcome
    assert "changed since merit branch 1 was trained; run again to retrain the branch" in outcome.lines[-1]
    assert merit("run", run).code == 0
    assert weights(run) == before
