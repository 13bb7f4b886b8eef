"""Runs side by side: what was set, who stood with whom, and differences over the same held-out examples alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from parsing import Page
from synthetic import NAMES, make_run
from test_report_content import chapter

from merit.base.errors import InputError
from merit.cli.main import run as merit
from merit.data.mixture import Mixture
from merit.evaluate.scores import ModelScores
from merit.report.compare import build_comparison
from merit.run.layout import RunDir
from merit.split.partition import Group, Partition


@pytest.fixture
def pair(tmp_path: Path) -> tuple[RunDir, RunDir]:
    """Two runs on the same data: another seed, two datasets exchanged, the second merge worse by 0.1 everywhere."""
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    config = yaml.safe_load(second.config.read_text())
    config["seed"] = 4
    config["train"]["lora"] = {"r": 8}
    second.config.write_text(yaml.safe_dump(config, sort_keys=False))
    partition = Partition.load(second.method().partition)
    a, b = (list(group.datasets) for group in partition.groups[:2])
    a[0], b[0] = b[0], a[0]
    groups = [Group(datasets=sorted(names), tokens=1) for names in (a, b)] + list(partition.groups[2:])
    partition.model_copy(update={"groups": groups}).save(second.method().partition)
    shift(second, "merit", 0.1)
    return first, second


def shift(run: RunDir, label: str, by: float) -> None:
    scores = ModelScores.load(run.evaluation(label))
    moved = [s.model_copy(update={"losses": [x + by for x in s.losses]}) for s in scores.in_mixture]
    scores.model_copy(update={"in_mixture": moved}).save(run.evaluation(label))


def compare(*runs: RunDir, page: Path) -> str:
    build_comparison([run.root for run in runs], page)
    return page.read_text(encoding="utf-8")


def test_settings_that_differ(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    found = build_comparison([run.root for run in pair], tmp_path / "page.html").settings
    assert [(item.name, list(item.values)) for item in found.different] == [
        ("train.lora", ["null", "–"]),
        ("seed", ["3", "4"]),
        ("train.lora.r", ["–", "8"]),
    ]
    assert found.same > 30


def test_groups_and_who_moved(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    found = build_comparison([run.root for run in pair], tmp_path / "page.html").groups
    assert found.rand[0][0] == found.rand[1][1] == 1
    assert found.rand[0][1] == found.rand[1][0] != 1
    swapped = [name for name in NAMES if found.of[0][name] != found.of[1][name]]
    assert sorted(found.moved[1]) == sorted(swapped)
    assert len(swapped) == 2


def test_groups_with_other_numbers_are_the_same_groups(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    partition = Partition.load(second.method().partition)
    partition.model_copy(update={"groups": list(reversed(partition.groups))}).save(second.method().partition)
    found = build_comparison([first.root, second.root], tmp_path / "page.html").groups
    assert found.rand[0][1] == 1
    assert found.moved[1] == []


def test_paired_differences_against_numpy(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    found = build_comparison([run.root for run in pair], tmp_path / "page.html")
    by = {(item.model, item.face): item for item in found.differences}
    same = by["base", "in_mixture"]
    assert (same.value, same.standard_error, same.verdict) == (0, 0, "not told apart")
    merge = by["merit", "in_mixture"]
    assert merge.value == pytest.approx(0.1)
    assert merge.standard_error == pytest.approx(0, abs=1e-9)  # the same on every example
    assert (merge.verdict, merge.examples) == ("worse", 12 * 16)

    losses = [ModelScores.load(pair[1].evaluation(name)).in_mixture[0].losses for name in ("merit", "joint")]
    scores = ModelScores.load(pair[1].evaluation("merit"))
    shuffled = [s.model_copy(update={"losses": losses[1]}) for s in scores.in_mixture[:1]]
    scores.model_copy(update={"in_mixture": [*shuffled, *scores.in_mixture[1:]]}).save(pair[1].evaluation("merit"))
    again = build_comparison([run.root for run in pair], tmp_path / "page.html")
    item = next(item for item in again.differences if (item.model, item.face) == ("merit", "in_mixture"))
    reference = ModelScores.load(pair[0].evaluation("merit")).in_mixture[0].losses
    difference = np.array(losses[1]) - np.array(reference)
    assert item.value == pytest.approx((difference.mean() + 11 * 0.1) / 12)
    assert item.standard_error == pytest.approx(difference.std(ddof=1) / math.sqrt(16) / 12)
    assert item.high - item.value == pytest.approx(1.959964 * item.standard_error)


def test_other_held_out_examples_are_not_paired(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    mixture = Mixture.load(pair[1].mixture)
    other = [item.model_copy(update={"fingerprint": "1" * 16}) for item in mixture.datasets[:3]]
    mixture.model_copy(update={"datasets": [*other, *mixture.datasets[3:]]}).save(pair[1].mixture)
    found = build_comparison([run.root for run in pair], tmp_path / "page.html")
    merge = next(item for item in found.differences if (item.model, item.face) == ("merit", "in_mixture"))
    assert merge.examples == 9 * 16
    assert any("11 of 14 datasets have the same held-out examples" in note for note in found.notes)


def test_a_run_that_measured_more_is_paired_where_both_measured(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    scores = ModelScores.load(pair[1].evaluation("merit"))
    short = [s.model_copy(update={"losses": s.losses[:5], "tokens": s.tokens[:5]}) for s in scores.in_mixture]
    scores.model_copy(update={"in_mixture": short}).save(pair[1].evaluation("merit"))
    found = build_comparison([run.root for run in pair], tmp_path / "page.html")
    merge = next(item for item in found.differences if (item.model, item.face) == ("merit", "in_mixture"))
    assert (merge.examples, merge.value) == (12 * 5, pytest.approx(0.1))


def test_the_page(pair: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    text = compare(*pair, page=tmp_path / "page.html")
    page = Page(text)
    assert [e.attributes["id"] for e in page.all("section")] == ["settings", "groups", "results", "cost"]
    assert "first · second" in page.all("h1")[0].text
    assert "The merge of second is worse in loss in the mixture than that of first." in page.all("main")[0].text
    assert len(page.all("figure")) == 1
    assert "adjusted Rand index" in chapter(text, "groups")
    assert "3 min 36 s" in chapter(text, "cost")
    assert len(text) <= 6_000_000


def test_runs_that_are_not_finished_and_damaged_ones(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / until, until=until) for until in ("mixture", "split", "train", "evaluate")]
    runs[2].method().partition.write_text("{")
    text = compare(*runs, page=tmp_path / "page.html")
    assert "nothing can be paired" in chapter(text, "results")
    assert "split/partition.json" in chapter(text, "results")


def test_in_the_terminal(pair: tuple[RunDir, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert merit(["compare", str(pair[0].root), str(pair[1].root), "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert "adjusted Rand index" in out
    assert "worse" in out
    assert page.is_file()
    assert merit(["compare", str(pair[0].root), str(pair[1].root), "-o", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["setting"] for item in found["settings"]] == ["train.lora", "seed", "train.lora.r"]
    assert found["adjusted_rand"][0][0] == 1
    assert all(item["low"] <= item["difference"] <= item["high"] for item in found["differences"])


@pytest.mark.parametrize(
    ("names", "said"),
    [(["first"], "at least two runs"), (["first", "nowhere"], "no config.yaml"), (["first", "first"], "given twice")],
)
def test_what_cannot_be_compared(pair: tuple[RunDir, RunDir], tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_comparison([tmp_path / name for name in names], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run", until="split") for place in ("a", "b")]
    found = build_comparison([run.root for run in runs], tmp_path / "page.html")
    assert [side.name for side in found.sides] == ["a/run", "b/run"]
