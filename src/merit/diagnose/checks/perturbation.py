"""Perturbation: how much does the loss rise when noise shakes the weights?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.progress import Counter
from merit.base.record import Record
from merit.base.words import decimal, plural, signed
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.losses import Matrix, Resampler
from merit.diagnose.models import JOINT, MERGE
from merit.diagnose.records import CheckResult, Estimate, than, with_interval

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench


class NoiseLevel(Record):
    """One model at one σ."""

    sigma: float
    loss: Estimate  # mean over seeds
    rise: Estimate  # against σ = 0
    seed_spread: float | None  # standard deviation between seeds


class PerturbationResult(CheckResult):
    """`perturbation.json`."""

    levels: dict[str, list[NoiseLevel]]  # model → levels
    merge_minus_joint: list[Estimate] | None  # rise of merge minus rise of joint, level by level
    seeds: int


def _run(bench: Bench) -> PerturbationResult:
    """Held-out loss of merge and joint under filter-normalised Gaussian noise σ, the same noise for both models."""
    live, examples, seeds = bench.live, bench.held_out, bench.config.noise_seeds
    sigmas = sorted({0.0, *bench.config.noise})
    passes = len(bench.compared) * (1 + seeds * (len(sigmas) - 1))
    found: dict[str, list[Matrix]] = {}  # model → σ by σ, (seeds, examples) losses
    with bench.progress.bar("perturbation", total=passes * len(examples.rows), unit="example") as bar:
        counter = Counter(bar)

        def measure(label: str, sigma: float, seed: int) -> list[float]:
            live.set({label: 1.0})
            if sigma:
                live.add_noise(sigma, seed)
            losses: list[float] = examples.measure(live.model, f"{label} with noise {sigma:g}", counter).tolist()
            return losses

        for label in bench.compared:
            found[label] = []
            for sigma in sigmas:
                counter.note(f"{label}, σ = {sigma:g}")
                rows = [
                    bench.journal.get(f"{label} {sigma:g} {seed}", partial(measure, label, sigma, seed))
                    for seed in range(seeds if sigma else 1)
                ]
                found[label].append(np.array(rows))
    resampler = examples.resampler
    against = None
    if {MERGE, JOINT} <= found.keys():
        merge, joint = ([rows.mean(0) - one[0][0] for rows in one] for one in (found[MERGE], found[JOINT]))
        against = [resampler.estimate(a - b) for a, b in zip(merge, joint, strict=True)]
    return PerturbationResult(
        levels={label: _levels(sigmas, rows, resampler) for label, rows in found.items()},
        merge_minus_joint=against,
        seeds=seeds,
    )


def _levels(sigmas: Sequence[float], rows: Sequence[Matrix], resampler: Resampler) -> list[NoiseLevel]:
    found = []
    for sigma, losses in zip(sigmas, rows, strict=True):
        spread = float(resampler.mean(losses).std(ddof=1)) if len(losses) > 1 else None
        found.append(
            NoiseLevel(
                sigma=sigma,
                loss=resampler.estimate(losses.mean(0)),
                rise=resampler.estimate(losses.mean(0) - rows[0][0]),
                seed_spread=spread,
            )
        )
    return found


def _rows(result: PerturbationResult) -> list[Row]:
    rows = []
    for label, levels in result.levels.items():
        quantity = f"rise of loss under σ = {levels[-1].sigma:g}, {label}"
        rows.append([quantity, with_interval(levels[-1].rise), "climbs" if label == JOINT else "flat"])
    if result.merge_minus_joint:
        rows.append(["rise of merge minus rise of joint", with_interval(result.merge_minus_joint[-1]), "< 0"])
    return rows


def _reading(result: PerturbationResult) -> Reading:
    found = (
        f"Every row of every matrix gets Gaussian noise of σ times its norm, {plural(result.seeds, 'draw')} a level."
    )
    if result.merge_minus_joint:
        last = result.merge_minus_joint[-1]
        sigma = result.levels["merge"][-1].sigma
        found += (
            f" At σ = {sigma:g} the merge rises {than(last, 'more', 'less')} joint training "
            f"({with_interval(last)} nats)."
        )
    return Reading(
        found,
        "All weights are shaken at random, further to the right more strongly; the line that rises less belongs to the "
        "model in the flatter valley.",
        "the merge stays flat up to σ = 0.1, joint training climbs",
    )


def _figure(result: PerturbationResult, draw: ModuleType) -> Any:
    """Rise of the loss with noise in the weights, merge and joint training."""
    others = [label for label in result.levels if label != "merge"]
    traces = [_trace(label, levels, others, draw) for label, levels in result.levels.items()]
    return draw.Figure(
        id="perturbation",
        title="Held-out loss under noise in the weights",
        alt=f"Rise of the loss of {len(traces)} models against the relative size of Gaussian noise in their weights, "
        "with 95% intervals. The flatter line has the flatter basin.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "σ: norm of the noise, relative to each row of weights"}},
            "yaxis": {"title": {"text": "rise of the loss, nats a token"}, "zeroline": True},
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        table=draw.DataTable(
            ["model", "σ", "loss", "rise", "95% interval", "spread between seeds"],
            [
                [
                    label,
                    f"{level.sigma:g}",
                    decimal(level.loss.value),
                    signed(level.rise.value),
                    draw.between(level.rise),
                    decimal(level.seed_spread),
                ]
                for label, levels in result.levels.items()
                for level in levels
            ],
        ),
        height=340,
    )


def _trace(label: str, levels: Sequence[NoiseLevel], others: Sequence[str], draw: ModuleType) -> Mapping[str, Any]:
    values = [level.rise for level in levels]
    own = draw.model_colour(label, others)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": draw.plotly_text(label),
        "x": [level.sigma for level in levels],
        "y": [item.value for item in values],
        "error_y": draw.whiskers(values, own),
        "line": {"color": own, "width": 2.5, "dash": draw.dash(len(others) and label in others)},
        "marker": {"size": 8, "color": own, "symbol": draw.model_symbol(label)},
        "hovertemplate": f"<b>{draw.plotly_text(label)}</b><br>σ = %{{x}}: %{{y:+.4f}}<extra></extra>",
    }


CHECK = Check(
    title="How flat is the ground around each model?",
    result=PerturbationResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    uses=("examples", "noise", "noise_seeds"),
    order=3,
)
