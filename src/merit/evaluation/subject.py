"""What is measured, and what is known of it already. No torch here, so that planning is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merit.config.evaluate import EvaluateConfig
from merit.data.mixture import Mixture
from merit.errors import InputError
from merit.evaluation.scores import ModelScores
from merit.run.layout import RunDir


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    label: str
    method: str
    kind: str  # base, branch, merge
    scale: float
    folder: Path
    fingerprint: str  # of the weights


def stored_scores(run: RunDir, subject: Subject, fingerprint: str) -> ModelScores | None:
    """What an earlier call measured, if nothing that it depends on has changed."""
    try:
        scores = ModelScores.load(run.evaluation(subject.label))
    except InputError:
        return None
    return scores if scores.fingerprint == fingerprint else None


def work_units(mixture: Mixture, config: EvaluateConfig, kind: str) -> int:
    """How often `advance` will be called for one model, in examples."""
    datasets = [*mixture.datasets, *mixture.unseen]
    losses = sum(min(config.held_out, dataset.held_out.examples) for dataset in datasets)
    scored = [dataset for dataset in datasets if dataset.scoring]
    answers = 0 if kind == "branch" else sum(min(config.generate, item.held_out.examples) for item in scored)
    return losses + answers + config.drift
