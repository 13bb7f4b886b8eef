"""Merging gain: is the merge better than its branches are on average, and than joint training?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.progress import Counter
from merit.base.record import Record
from merit.base.words import NONE, decimal
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.losses import LossSet, Vector, interval, losses_at
from merit.diagnose.models import BASE, JOINT, MERGE, Models
from merit.diagnose.records import CheckResult, Estimate, than, with_interval

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench


class FaceLosses(Record):
    """Losses of every model on one set of examples."""

    losses: dict[str, Estimate]
    gain: Estimate  # Σ w_i L(θ_i) − L(θ̄)
    merge_minus_base: Estimate
    merge_minus_joint: Estimate | None


class GainResult(CheckResult):
    """`gain.json`: the left side of Theorem 1, and both losses of merge and joint."""

    weights: list[float]
    held_out: FaceLosses
    train: FaceLosses
    gap_merge: Estimate  # held-out minus training loss (two different sets: not paired)
    gap_joint: Estimate | None


def _run(bench: Bench) -> GainResult:
    """Theorem 1 measured, Σ w_i L(θ_i) − L(θ̄) with its interval; and the losses of every model on both sets."""
    models, sets = bench.models, bench.sets
    labels = list(models.folders)
    found = {}
    total = len(labels) * sum(len(item.rows) for item in sets.values())
    with bench.progress.bar("gain", total=total, unit="example") as bar:
        counter = Counter(bar)
        for label in labels:
            counter.note(label)
            found[label] = bench.journal.get(label, partial(losses_at, bench.live, {label: 1.0}, label, sets, counter))
    losses = {name: {label: np.array(found[label][name]) for label in labels} for name in sets}
    return GainResult(
        weights=list(models.weights),
        held_out=_face(models, losses["held_out"], sets["held_out"]),
        train=_face(models, losses["train"], sets["train"]),
        gap_merge=_gap(losses, MERGE, sets),
        gap_joint=_gap(losses, JOINT, sets) if models.joint is not None else None,
    )


def _face(models: Models, losses: Mapping[str, Vector], examples: LossSet) -> FaceLosses:
    resampler = examples.resampler
    parts = np.array([losses[label] for label in models.branch_labels])
    return FaceLosses(
        losses={label: resampler.estimate(values) for label, values in losses.items()},
        gain=resampler.estimate(np.asarray(models.weights) @ parts - losses[MERGE]),
        merge_minus_base=resampler.estimate(losses[MERGE] - losses[BASE]),
        merge_minus_joint=resampler.estimate(losses[MERGE] - losses[JOINT]) if JOINT in losses else None,
    )


def _gap(losses: Mapping[str, Mapping[str, Vector]], label: str, sets: Mapping[str, LossSet]) -> Estimate:
    """Held-out minus training loss. The examples differ and are drawn separately, so both sets' noise adds up."""
    held_out, train = sets["held_out"].resampler, sets["train"].resampler
    outside, inside = losses["held_out"][label][None, :], losses["train"][label][None, :]
    value = held_out.mean(outside)[0] - train.mean(inside)[0]
    return interval(float(value), held_out.drawn(outside)[:, 0] - train.drawn(inside)[:, 0])


def _rows(result: GainResult) -> list[Row]:
    rows = []
    for face, found in (("held-out", result.held_out), ("training", result.train)):
        rows.append([f"Σ w L(θ_k) − L(merge), {face}", with_interval(found.gain), "≥ 0"])
        rows.append([f"merge minus θ0, {face} loss", with_interval(found.merge_minus_base), NONE])
        if found.merge_minus_joint is not None:
            published = "> 0" if face == "training" else "better score"
            rows.append([f"merge minus joint, {face} loss", with_interval(found.merge_minus_joint), published])
    rows.append(["held-out minus training, merge", with_interval(result.gap_merge), NONE])
    if result.gap_joint is not None:
        rows.append(["held-out minus training, joint", with_interval(result.gap_joint), NONE])
    return rows


def _reading(result: GainResult) -> Reading:
    found = result.held_out
    text = (
        f"Σ w L(θ_k) − L(θ̄) is {with_interval(found.gain)} on held-out and {with_interval(result.train.gain)} on "
        f"training examples: the merge is {than(found.gain, 'better', 'worse')} its branches on average."
    )
    if found.merge_minus_joint is not None and result.train.merge_minus_joint is not None:
        text += (
            " The merge's loss is "
            f"{than(result.train.merge_minus_joint, 'higher', 'lower')} that of joint training on training examples "
            f"({with_interval(result.train.merge_minus_joint)}), and "
            f"{than(found.merge_minus_joint, 'higher', 'lower')} it on held-out ones "
            f"({with_interval(found.merge_minus_joint)})."
        )
    return Reading(
        text,
        "Further left is better; a merge left of its branches has gained from averaging, and a short way from a "
        "model's training mark to its held-out mark means little overfitting.",
        "the merge has a higher training loss than joint training (1.172 against 0.560 after one epoch), and the "
        "better held-out score, on benchmarks outside the mixture",
    )


def _figure(result: GainResult, draw: ModuleType) -> Any:
    """Training against held-out loss of every model."""
    labels = list(result.held_out.losses)
    traces = []
    for face, found, shade in (("training", result.train, "--face-1"), ("held-out", result.held_out, "--face-0")):
        values = [found.losses[label] for label in labels]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": face,
                "x": [item.value for item in values],
                "y": list(range(len(labels))),
                "error_x": draw.whiskers(values, shade),
                "marker": {"size": 10, "color": shade, "symbol": "circle" if face == "held-out" else "diamond"},
                "hovertemplate": f"{face} loss %{{x:.3f}}<extra></extra>",
            }
        )
    return draw.Figure(
        id="train-held-out",
        title="Training and held-out loss of every model",
        alt=f"Training and held-out loss of {len(labels)} models with 95% intervals. Further left is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "loss, nats a token  (← better)"}},
            "yaxis": draw.row_axis(["θ0" if label == "base" else label for label in labels], grid=True),
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        table=draw.DataTable(
            ["model", "training", "95% interval", "held-out", "95% interval"],
            [
                [
                    "θ0" if label == "base" else label,
                    decimal(result.train.losses[label].value),
                    draw.between(result.train.losses[label]),
                    decimal(result.held_out.losses[label].value),
                    draw.between(result.held_out.losses[label]),
                ]
                for label in labels
            ],
        ),
        height=140 + 36 * len(labels),
    )


def _tracked(result: GainResult) -> dict[str, float]:
    found: dict[str, float] = {}
    for face, losses in (("held_out", result.held_out), ("train", result.train)):
        found |= {face: losses.gain.value, f"{face}_low": losses.gain.low, f"{face}_high": losses.gain.high}
    return found


CHECK = Check(
    title="Is the merge better than its parts?",
    result=GainResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    tracked=_tracked,
    uses=("examples",),
    order=2,
)
