"""A model's scores in pieces: who measures what, and what a kill or damage interrupts, changes no bit of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from merit.base.errors import StageError
from merit.base.locks import claim
from merit.context import RunContext
from merit.evaluate import measure as module
from merit.evaluate.measure import measure, missing, spread
from merit.evaluate.pieces import Evaluation
from merit.evaluate.scores import ModelScores
from merit.evaluate.subjects import subjects
from merit.run.events import read_events

OLD = Path(__file__).parents[1] / "run" / "old_run"  # finished by an earlier merit, which measured model by model
PIECES = ["answers-0", "answers-1", "in_mixture-0", "in_mixture-1", "drift"]


def unmeasured(folder: Path) -> RunContext:
    shutil.copytree(OLD, folder)
    shutil.rmtree(folder / "run" / "evaluation")
    return RunContext.open(folder / "run")


def scores(context: RunContext) -> dict[str, dict[str, Any]]:
    """Label → all that was measured."""
    found = {item.label: ModelScores.load(context.run.evaluation(item.label)) for item in subjects(context)}
    return {label: item.model_dump(exclude={"seconds"}) for label, item in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process measures, undisturbed."""
    context = unmeasured(tmp_path_factory.mktemp("whole") / "old")
    assert measure(context) == len(subjects(context)) == 6
    assert not context.run.pieces.exists()
    assert missing(context) == []
    return scores(context)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return unmeasured(tmp_path / "old")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The label and piece of all that is measured."""
    found: list[tuple[str, str]] = []
    original = Evaluation.measure

    def watched(self: Evaluation, piece: Any) -> None:
        original(self, piece)
        found.append((self.subject.label, piece.name))

    monkeypatch.setattr(Evaluation, "measure", watched)
    return found


def test_scores_are_those_of_whole_models(whole):
    before = scores(RunContext.open(OLD / "run"))
    assert whole.keys() == before.keys()
    for label, found in whole.items():
        for face in ("in_mixture", "unseen"):
            for now, then in zip(found[face], before[label][face], strict=True):
                assert now == then | {"losses": pytest.approx(then["losses"], rel=1e-6)}
        assert found["drift"]["losses"] == pytest.approx(before[label]["drift"]["losses"], rel=1e-6)
        assert found["fingerprint"] == before[label]["fingerprint"]


def test_a_worker_helps_with_a_model_that_another_measures(context, whole, measured):
    jobs = context.run.evaluations / "jobs"
    with ExitStack() as other:  # it has θ0 in hand, and is about its first answers
        other.enter_context(claim(jobs / "base.lock"))
        other.enter_context(claim(context.run.piece("base", "answers-0").with_suffix(".lock")))
        assert measure(context, share=True) == 5
        assert [piece for label, piece in measured if label == "base"] == PIECES[1:]
        assert [label for label, _ in measured][-len(PIECES[1:]) :] == ["base"] * 4, "whole models come first"
        assert [subject.label for subject, _ in missing(context)] == ["base"]
    measured.clear()
    assert measure(context, share=True) == 1
    assert measured == [("base", "answers-0")]
    assert scores(context) == whole


def test_two_workers_measure_the_same_bits(context, whole, warm_jobs):
    launch = context.config.launch.model_copy(update={"parallel": 2})
    context.config = context.config.model_copy(update={"launch": launch})
    spread(context, len(missing(context)))
    assert missing(context) == []
    ended = {event["stage"] for event in read_events(context.run.events) if event["event"] == "end"}
    assert {"evaluate worker 0", "evaluate worker 1"} <= ended
    assert scores(context) == whole


def test_nothing_is_measured_twice(context, whole, measured):
    """The other worker finishes the model between this one's look at what is missing and its turn to help."""
    with ExitStack() as other:
        other.enter_context(claim(context.run.evaluations / "jobs" / "merit.lock"))
        last = context.run.evaluation(subjects(context)[-1].label)
        original = Evaluation.finish

        def finish(self: Evaluation) -> bool:
            done = original(self)
            if self.context.run.evaluation(self.subject.label) == last:
                other.close()
                assert measure(context, share=True) == 1
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Evaluation, "finish", finish)
            assert measure(context, share=True) == 5
    assert len(measured) == len(set(measured))
    assert scores(context) == whole


def test_a_killed_evaluation_loses_one_piece(context, whole, measured, monkeypatch):
    watched = Evaluation.measure

    def killed(self: Evaluation, piece: Any) -> None:
        if len(measured) == 7:
            raise KeyboardInterrupt
        watched(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(context)
    assert len(measured) == 7
    piece = context.run.piece(*measured[-1])
    piece.write_bytes(piece.read_bytes().replace(b"0", b"1", 1))
    measure(context)
    assert measured.count(measured[6]) == 2
    assert len(measured) == len(set(measured)) + 1, "only what was damaged is measured again"
    assert scores(context) == whole


def test_no_worker_waits_for_the_drift_set_before_it_needs_it(context, whole, measured, monkeypatch):
    original: Callable[..., Any] = module._drift_set
    with ExitStack() as other:
        other.enter_context(claim(context.run.evaluations / "jobs" / "drift-set.lock"))

        def waits(context: RunContext, *, share: bool) -> Any:
            if not seen:
                seen.extend(measured)
            other.close()
            return original(context, share=share)

        seen: list[tuple[str, str]] = []
        monkeypatch.setattr(module, "_drift_set", waits)
        assert measure(context, share=True) == 6
    assert seen == [("base", piece) for piece in PIECES[:-1]]
    assert scores(context) == whole


def test_a_loss_that_is_not_finite_is_told_in_one_line(context, monkeypatch):
    monkeypatch.setattr("merit.compute.losses.example_scores", lambda *_, **__: ([1.0, float("nan")], [1, 1], []))
    with pytest.raises(StageError, match="base: a held-out loss is not finite"):
        measure(context)
