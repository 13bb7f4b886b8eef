"""`merit diagnose` as a user starts it: results, skipping, resuming, verdicts, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finished_run import finished, tune  # noqa: F401 — a fixture
from transformers import LlamaConfig, LlamaForCausalLM

from merit.base import extensions
from merit.base.progress import SILENT
from merit.cli.main import run
from merit.context import RunContext
from merit.data.example import Encoded
from merit.diagnose import step as diagnose
from merit.diagnose.check import Journal, find_check
from merit.diagnose.checks.lmc import LmcResult
from merit.diagnose.checks.perturbation import PerturbationResult
from merit.diagnose.live import LiveModel
from merit.diagnose.models import Models
from merit.diagnose.records import CheckResult
from merit.diagnose.verdict import verdict
from merit.merge.step import MethodMerge
from merit.pipeline import STAGE_NAMES, check_stage
from merit.run.events import read_events
from merit.run.layout import RunDir

CHECK_NAMES = extensions.names("checks")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(finished: RunDir, tmp_path: Path) -> RunDir:  # noqa: F811
    shutil.copytree(finished.root, tmp_path / "run")
    return RunDir(tmp_path / "run")


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(item) for item in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_some_checks_then_the_same_again(copy: RunDir, capsys: Capture) -> None:
    code, out, err = call(capsys, "diagnose", copy.root, "--checks", "gain, lmc,displacement,gain")
    assert code == 0, err
    assert "0 of 10" in out  # the published value stands beside ours
    assert "erge-ready" in out
    assert copy.report.is_file()
    before = copy.diagnostic("lmc").read_bytes()
    code, out, err = call(capsys, "diagnose", copy.root, "--checks", "lmc,gain", "--json")
    assert code == 0
    assert "lmc: unchanged, kept" in err
    found = json.loads(out)
    assert set(found["results"]) == {"lmc", "gain"}
    assert found["verdict"]["ready"] in (True, False)
    assert copy.diagnostic("lmc").read_bytes() == before
    assert not list(copy.diagnostics.rglob("unfinished/*"))
    assert [event["event"] for event in read_events(copy.events) if event.get("stage") == "diagnose"].count("end") == 2


def test_a_changed_setting_measures_again(copy: RunDir, capsys: Capture) -> None:
    assert call(capsys, "diagnose", copy.root, "--checks", "perturbation")[0] == 0
    first = PerturbationResult.load(copy.diagnostic("perturbation"))
    text = copy.config.read_text()
    copy.config.write_text(text.replace("noise_seeds: 2", "noise_seeds: 1"))
    assert call(capsys, "diagnose", copy.root, "--checks", "perturbation")[0] == 0
    assert PerturbationResult.load(copy.diagnostic("perturbation")).seeds == 1
    copy.config.write_text(text)
    assert call(capsys, "diagnose", copy.root, "--checks", "perturbation", "--redo")[0] == 0
    again = PerturbationResult.load(copy.diagnostic("perturbation"))
    assert again.levels == first.levels


def test_a_kill_costs_one_segment(copy: RunDir, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    measure = LiveModel.set

    def dying(self: LiveModel, coefficients: dict[str, float]) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise RuntimeError("killed")
        measure(self, coefficients)

    monkeypatch.setattr(LiveModel, "set", dying)
    with pytest.raises(RuntimeError, match="killed"):
        run(["diagnose", str(copy.root), "--checks", "lmc"])
    assert copy.diagnostic_progress("lmc").is_file()
    killed, calls = calls, 100
    assert call(capsys, "diagnose", copy.root, "--checks", "lmc")[0] == 0
    segments = 1 + 2 + 2 + 1
    whole = 4 + segments * 3  # ends, and three points on each segment
    assert calls - 100 < whole
    assert calls - 100 + killed <= whole + 3 + 1  # at most one segment twice, and the call that died
    resumed = LmcResult.load(copy.diagnostic("lmc"))
    assert call(capsys, "diagnose", copy.root, "--checks", "lmc", "--redo")[0] == 0
    assert LmcResult.load(copy.diagnostic("lmc")).held_out == resumed.held_out


def test_the_stage_is_off_unless_checks_are_listed(copy: RunDir) -> None:
    assert STAGE_NAMES[-3:] == ("diagnose", "report", "track")
    context = RunContext.open(copy.root)
    assert not diagnose.wanted(context)
    copy.config.write_text(copy.config.read_text().replace("checks: []", "checks: [displacement]"))
    context = RunContext.open(copy.root)
    assert diagnose.wanted(context)
    assert diagnose.run(context) == {"checks": 1}
    assert [file.name for file in diagnose.STEP.files(context)] == ["displacement.json"]
    assert not check_stage(copy, "diagnose", diagnose.depends(context)).fresh


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ("", ["--checks", "lcm"], "`--checks`: no check 'lcm'; did you mean `lmc`?"),
        ("", ["--checks", "zzzz"], f"no check 'zzzz'; the checks are {', '.join(CHECK_NAMES)}"),
        ("merge.json", [], "this run has not been merged yet; `merit run` first"),
        ("mixture.json", [], "nothing has been run here yet"),
        ("branches/01/checkpoint", [], "no checkpoint of `branch 1` here; was it removed?"),
        ("merged", [], "the merge itself (β = 1) is not there"),
        ("branches/00/DONE", [], "DONE: no such file"),
    ],
)
def test_bad_input_is_one_line(copy: RunDir, capsys: Capture, change: str, arguments: list[str], expected: str) -> None:
    if change:
        path = copy.root / change
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out, err = call(capsys, "diagnose", copy.root, *arguments)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not out
    assert not copy.diagnostics.exists()


def test_a_run_of_one_branch_is_one_line(copy: RunDir, capsys: Capture) -> None:
    record = MethodMerge.load(copy.method().merge_record)
    record.model_copy(update={"weights": [1.0]}).save(copy.method().merge_record)
    code, _, err = call(capsys, "diagnose", copy.root)
    assert code == 2
    assert err.splitlines() == ["a diagnosis needs at least two branches; the main method of this run has one"]


def test_checks_that_cannot_work_are_said_before_anything_runs(copy: RunDir, capsys: Capture) -> None:
    text = copy.config.read_text().replace("checks: []", "checks: [lmc]").replace("splitter: pca", "splitter: single")
    copy.config.write_text(text)
    code, _, err = call(capsys, "run", copy.root)
    assert code == 2
    assert "`diagnose.checks`: a diagnosis needs two branches" in err


def _words(shift: int) -> list[Encoded]:
    ids = [[(3 * i + shift * j) % 17 + 1 for j in range(8)] for i in range(8)]
    return [Encoded(row, row) for row in ids]


@pytest.fixture(scope="module")
def inits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny models of different random inits."""
    import torch

    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=20,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            initializer_range=0.1,
        )
        folders.append(tmp_path_factory.mktemp("init"))
        LlamaForCausalLM(config).save_pretrained(folders[-1])
    return folders


def _diagnose(
    inits: list[Path], starts: list[int], folder: Path, steps: int, *, alike: bool = False
) -> dict[str, CheckResult]:
    """Two branches on data of their own, or both on all of it (`alike`)."""
    from merit.diagnose.checks.displacement import displacement, measure_moves
    from merit.diagnose.checks.lmc import connectivity, segment_pairs
    from merit.diagnose.losses import LossSet

    branches = []
    for k, start in enumerate(starts):
        model = LlamaForCausalLM.from_pretrained(inits[start])
        tune(model, [*_words(1), *_words(3)] if alike else _words(1 + 2 * k), steps=steps, rate=5e-3)
        branches.append(folder / f"branch-{k}")
        model.save_pretrained(branches[-1])
    merge = folder / "merge"
    live = LiveModel(LlamaForCausalLM.from_pretrained(inits[0]), dict(zip("ab", branches, strict=True)))
    live.set({"a": 0.5, "b": 0.5})
    live.model.save_pretrained(merge)
    models = Models(inits[0], branches, [0.5, 0.5], merge)
    live = LiveModel(live.model, models.folders)
    rows = [*_words(1), *_words(3)]
    examples = LossSet(rows, [0] * 8 + [1] * 8, 4096, "fp32", seed=0)
    pairs, sets = segment_pairs(models), {"held_out": examples, "train": examples}
    bench: Any = SimpleNamespace(live=live, models=models, sets=sets, journal=Journal(), progress=SILENT)
    return {
        "lmc": connectivity(live, pairs, {"held_out": examples}, points=5),
        "gain": find_check("gain").run(bench),
        "displacement": displacement(measure_moves(live.aligned)),
    }


def test_branches_of_different_inits_are_called_not_merge_ready(inits: list[Path], tmp_path: Path) -> None:
    found = verdict(_diagnose(inits, [0, 1], tmp_path, 80, alike=True))
    assert found.ready is False
    assert any("A barrier of" in reason and "between branch 0 and branch 1" in reason for reason in found.reasons)
    assert any("Lower the learning rate" in reason for reason in found.reasons)  # what to do about it


def test_different_inits_are_told_even_where_branches_know_nothing_of_each_other(
    inits: list[Path], tmp_path: Path
) -> None:
    # Each branch is so sure and so wrong on the other's data that the ignorant midpoint lies below the chord.
    found = verdict(_diagnose(inits, [0, 1], tmp_path, 60))
    assert found.ready is False
    assert any("Were they tuned from this θ0" in reason for reason in found.reasons)


def test_branches_of_one_init_are_called_merge_ready(inits: list[Path], tmp_path: Path) -> None:
    found = verdict(_diagnose(inits, [0, 0], tmp_path, 4))
    assert found.ready is True, found


def test_no_verdict_without_a_deciding_check() -> None:
    assert verdict({}).ready is None


def test_all_checks_are_the_default(copy: RunDir, capsys: Capture) -> None:
    text = copy.config.read_text()
    for old, new in (
        ("eigenpairs: 10", "eigenpairs: 2"),
        ("lanczos_steps: 30", "lanczos_steps: 4"),
        ("probes: 8", "probes: 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    copy.config.write_text(text)
    code, out, err = call(capsys, "diagnose", copy.root)
    assert code == 0, err
    assert sorted(file.stem for file in copy.diagnostics.glob("*.json")) == sorted(CHECK_NAMES)
    assert not list(copy.diagnostics.rglob("unfinished/*"))
    page = copy.report.read_text(encoding="utf-8")
    assert "Whether the basin held" in page
    figures = (
        "connectivity",
        "displacement",
        "train-held-out",
        "perturbation",
        "alignment",
        "calibration",
        "landscape",
    )
    for figure in figures:
        assert f'id="fig-{figure}"' in page
    for published in ("0 of 10", "2.4–2.9", "0.133", "0.091 ± 0.023", "5.6e-5"):
        assert published in out


def test_the_report_has_the_chapter_only_where_something_was_checked(copy: RunDir, capsys: Capture) -> None:
    assert call(capsys, "report", copy.root)[0] == 0
    assert "What the basin looks like" not in copy.report.read_text(encoding="utf-8")
    assert call(capsys, "diagnose", copy.root, "--checks", "displacement,gain")[0] == 0
    copy.diagnostic("gain").write_text('{"weights": [0.5')
    assert call(capsys, "report", copy.root)[0] == 0
    page = copy.report.read_text(encoding="utf-8")
    assert "<code>diagnostics/gain.json</code> is left out: not valid JSON" in page
    assert 'id="fig-displacement"' in page
    assert "No verdict" in page


def test_a_merge_that_has_not_moved_is_said_before_anything_long(
    copy: RunDir, capsys: Capture, tiny_model: Path
) -> None:
    for folder in (copy.method().branch(0).checkpoint, copy.method().branch(1).checkpoint):
        shutil.copy(tiny_model / "model.safetensors", folder / "model.safetensors")
    code, _, err = call(capsys, "diagnose", copy.root)
    assert code == 2
    assert err.splitlines() == ["`branch 0` has not moved from θ0 (‖θ − θ0‖ = 0): there is nothing to diagnose"]
    assert not list(copy.diagnostics.glob("*.json"))
