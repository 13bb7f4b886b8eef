"""What the page says about the synthetic run, sentence by sentence."""

from __future__ import annotations

import re
from pathlib import Path

from parsing import Page
from synthetic import NAMES, make_run

from merit.report.build import build_report, chapters
from merit.report.evidence import read_evidence
from merit.report.export import figures_of
from merit.run.layout import RunDir


def chapter(page: str, name: str) -> str:
    text = next(element.text for element in Page(page).all("section") if element.attributes["id"] == name)
    return re.sub(r"\s+", " ", text)


def test_asked(page: str) -> None:
    text = chapter(page, "asked")
    assert "12 datasets, 6,000 training examples" in text
    assert "2 unseen datasets only measured" in text
    assert "full fine-tuning, 1 epoch, learning rate 5e-05" in text
    assert "3 truncated" in text
    assert "…/tuning/arithmetic.jsonl" in text
    assert "/srv/people" not in text
    assert any(element.text == "5<|end|>" for element in Page(page).all("mark"))


def test_conflict(page: str) -> None:
    text = chapter(page, "conflict")
    assert "These fight most" in text
    assert "135 M trainable parameters" in text
    assert "most of its gradient is noise (reliability 0.41)" in text
    assert "Find a dataset" in text
    assert re.search(r"PC1, 3\d% of what differs (\w+ ){3}", text)


def test_split(page: str) -> None:
    text = chapter(page, "split")
    assert "along the axes of gradient conflict" in text
    assert "On PC1, 12 datasets were cut at" in text
    assert "holds 71% of this group's tokens" in text
    # On every cut the last dataset below it is the only one that near: 2 axes, 3 cuts.
    assert re.search(r"could have put a dataset on the other side: \w+, \w+ and \w+ \(3 of 12\)", text)
    assert "which is joint training" in text
    for name in NAMES:
        assert name in text


def test_training_passes_over_torn_lines(page: str) -> None:
    text = chapter(page, "training")
    assert "What each branch weighs where the merge is an average" in text
    assert "not finished" not in text


def test_unfinished_branches_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="train")
    run.method().branch(2).done.unlink()
    run.method().branch(3).done.unlink()
    text = chapter(build_report(run.root).read_text(encoding="utf-8"), "training")
    assert "merit: branches 2 and 3 not finished" in text


def test_gains(page: str) -> None:
    text = chapter(page, "gains")
    assert "Against joint training (joint):" in text
    assert "worse in the mixture (+0.540 ± 0.020)" in text
    assert "The merge lies 3.2× closer to θ0" in text
    assert "Merging gain" in text
    assert "One run has one seed" in text


def test_best_figures_are_marked_by_more_than_colour(page: str) -> None:
    best = [element.text for element in Page(page).all("td") if element.attributes.get("class") == "best"]
    assert any("1.490" in text and "★" in text and "best" in text for text in best)


def test_cost_sums_sessions_and_tells_traffic(page: str) -> None:
    text = chapter(page, "cost")
    assert "5 min 34 s" in text  # 312 s and the 21.5 s of the session that failed
    assert "branch 2 died" in text
    assert "3.1 GB" in text  # a branch job's peak; its time is in the stage's already
    assert "train merit 1" not in text
    assert "evaluate worker" not in text
    assert "4 × 4.1 kB = 16.4 kB" in text
    # 2 · 3/4 · 4 bytes · 134,515,008 parameters a step, 200 steps
    assert "807 MB" in text
    assert "161 GB a worker" in text


def test_cost_stands_beside_that_of_joint_training(page: str) -> None:
    text = chapter(page, "cost")
    assert "training, one machine3 min 36 s3 min1.2" in text  # 4 × 60 steps of 0.9 s against 200
    assert "training, 4 machines54 s (the longest branch)45 s at best1.2" in text
    assert "bytes between 4 machines16.4 kB, once646 GB, in 200 steps" in text
    assert "finding the conflict, and splitting48 s" in text


def test_no_comparison_of_costs_while_branches_train(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.method().branch(1).done.unlink()
    assert "at best" not in chapter(build_report(run.root).read_text(encoding="utf-8"), "cost")


def test_a_method_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    colours: dict[str, set[str]] = {}
    for figure in figures_of(chapters(read_evidence(make_run(tmp_path / "run").root))):
        for trace in figure.traces:
            marker, line = trace.get("marker", {}), trace.get("line", {})
            method = str(trace.get("name")).split(" ")[0]  # "random 2" is its branch 2
            if method in ("joint", "random") and figure.id != "forest":
                colours.setdefault(method, set()).add(marker.get("color") or line["color"])
    assert sorted(colours) == ["joint", "random"]
    assert [len(found) for found in colours.values()] == [1, 1], colours


def test_reproduce(page: str) -> None:
    text = chapter(page, "reproduce")
    assert "merit-tuning==0.1.0" in text
    assert "merit run config.yaml" in text
    assert "git_commit" in text


def test_a_soup_has_no_groups_of_its_own(tmp_path: Path) -> None:
    run: RunDir = make_run(tmp_path / "run", until="split")
    partition = run.method().partition
    text = partition.read_text(encoding="utf-8").replace('"pca"', '"replicate"')
    partition.write_text(text, encoding="utf-8")
    assert "merged, a uniform soup" in chapter(build_report(run.root).read_text(encoding="utf-8"), "split")
