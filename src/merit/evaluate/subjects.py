"""The models of a run that are evaluated, and by what one knows that a model's scores still hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merit.base.record import fingerprint
from merit.context import Method, RunContext
from merit.merge.step import merged_branches
from merit.models.source import weights_fingerprint
from merit.run.layout import MAIN_METHOD

BASE = "base"


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    label: str
    method: str
    kind: str  # base, branch, round (the merge of one before the last), merge
    scale: float
    folder: Path
    fingerprint: str  # of the weights


def subjects(context: RunContext) -> list[Subject]:
    """What is measured, θ0 first."""
    found = [Subject(BASE, BASE, "base", 0.0, context.model.path, context.model.fingerprint)]
    for method in context.methods:
        results = merged_branches(method)
        if method.name == MAIN_METHOD and context.config.evaluate.branches and len(results) > 1:
            for k, result in results.items():
                folder = method.dir.branch(k).checkpoint
                label = f"{method.name}/branch-{k:02d}"
                found.append(Subject(label, method.name, "branch", 1.0, folder, fingerprint(result.files)))
        for one in [] if method.source else method.before:
            folder, label = one.dir.merged(), round_label(one)
            found.append(Subject(label, method.name, "round", 1.0, folder, weights_fingerprint(folder)))
        for scale in method.config.scales:
            label = method.name if scale == 1.0 else f"{method.name}@{scale:g}"
            folder = method.dir.merged(scale)
            found.append(Subject(label, method.name, "merge", scale, folder, weights_fingerprint(folder)))
    return found


def round_label(method: Method) -> str:
    """What the merge of a round before the last is called."""
    return f"{method.name}/round-{method.round}"
