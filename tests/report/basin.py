"""The synthetic run's gate and diagnoses: what `merit run` and `merit diagnose` would have left behind."""

from __future__ import annotations

import numpy as np

from merit.diagnose.checks.calibration import CalibrationPoint, CalibrationResult
from merit.diagnose.checks.curvature import CurvatureResult
from merit.diagnose.checks.displacement import DisplacementResult, ModelDisplacement, Trajectories
from merit.diagnose.checks.gain import FaceLosses, GainResult
from merit.diagnose.checks.landscape import LandscapeResult
from merit.diagnose.checks.lmc import LmcResult
from merit.diagnose.checks.perturbation import NoiseLevel, PerturbationResult
from merit.diagnose.records import Estimate, Segment
from merit.gate.step import GateResult
from merit.run.layout import RunDir

_MARK = {"fingerprint": "0" * 16, "seconds": 3.0}
_BRANCHES = tuple(f"branch {k}" for k in range(4))
_MODELS = (*_BRANCHES, "merge", "joint")
_T = [round(i / 10, 1) for i in range(11)]


def write_gate(run: RunDir, *, ready: bool = True) -> None:
    """gate/gate.json; where it is not ready, with a barrier above the limit."""
    barriers = [_segment(f"pilot {a}", f"pilot {b}", -0.02 * (a + b)) for a in range(4) for b in range(a + 1, 4)]
    if not ready:
        barriers[0] = _segment("pilot 0", "pilot 1", 0.4)
    GateResult(
        fingerprint="0" * 16,
        share=0.02,
        tokens=[800, 900, 700, 850],
        base_loss=4.2,
        branch_losses=[3.9, 3.8, 4.0, 3.7],
        merged_loss=3.6,
        barriers=barriers,
        displacement=0.4,
        branch_displacement=[0.8, 0.9, 0.7, 0.8],
        ready=ready,
        advice=[] if ready else ["a barrier of 0.400 nats lies between pilot 0 and pilot 1: lower the rate"],
    ).save(run.gate_record)


def write_basin(run: RunDir) -> None:
    """All of diagnostics/*.json."""
    rng = np.random.default_rng(5)
    pairs = [(a, b) for i, a in enumerate(_BRANCHES) for b in _BRANCHES[i + 1 :]]
    held_out = [_segment(a, b, -0.3 + 0.02 * i) for i, (a, b) in enumerate(pairs)]
    held_out += [_segment(a, "merge", -0.1) for a in _BRANCHES] + [_segment("base", "merge", -0.2)]
    LmcResult(held_out=held_out, train=held_out[:3], examples=192, datasets=12, **_MARK).save(run.diagnostic("lmc"))
    _displacement().save(run.diagnostic("displacement"))
    _gain().save(run.diagnostic("gain"))
    levels = {
        label: [_noise(sigma, slope * sigma) for sigma in (0.0, 0.01, 0.05, 0.1)]
        for label, slope in (("merge", 1.0), ("joint", 4.0))
    }
    PerturbationResult(
        levels=levels, merge_minus_joint=[_about(-3.0 * s) for s in (0.0, 0.01, 0.05, 0.1)], seeds=3, **_MARK
    ).save(run.diagnostic("perturbation"))
    CurvatureResult(
        parameters=134_515_008,
        tokens=4096,
        examples=40,
        steps=30,
        eigenvalues=[90.0, 40.0, 22.0],
        residuals=[0.1, 0.2, 0.4],
        lowest=-3.0,
        trace=5100.0,
        trace_error=210.0,
        axes=[0.12, 0.14],
        tasks=rng.uniform(0.06, 0.12, 12).tolist(),
        random=[4e-5, 7e-5],
        z_tasks=1.9,
        z_random=60.0,
        gain_top=0.05,
        gain_quadratic=0.3,
        gain_measured=0.35,
        **_MARK,
    ).save(run.diagnostic("curvature"))
    points = [
        CalibrationPoint(examples=n, cosine=1 - 8 / n, cosine_sd=0.05, rand=float(n >= 100)) for n in (50, 100, 200)
    ]
    CalibrationResult(largest=400, points=points, datasets=12, **_MARK).save(run.diagnostic("calibration"))
    axis = np.linspace(-2, 8, 9)
    LandscapeResult(
        x=axis.tolist(),
        y=axis.tolist(),
        loss=[[1.5 + 0.05 * (x - 2) ** 2 + 0.05 * y**2 for x in axis] for y in axis],
        models={"base": (0.0, 0.0), **{m: (2.0 + i, float(i - 2)) for i, m in enumerate(_MODELS)}},
        off_plane={"base": 0.0, **dict.fromkeys(_MODELS, 0.7)},
        examples=48,
        **_MARK,
    ).save(run.diagnostic("landscape"))


def _about(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def _segment(a: str, b: str, height: float) -> Segment:
    chord = [3.0] * len(_T)
    loss = [3.0 + 4 * height * t * (1 - t) for t in _T]
    return Segment(a=a, b=b, t=_T, loss=loss, chord=chord, peak=_about(height), at=0.5)


def _noise(sigma: float, rise: float) -> NoiseLevel:
    return NoiseLevel(sigma=sigma, loss=_about(2 + rise), rise=_about(rise), seed_spread=0.01)


def _displacement() -> DisplacementResult:
    totals = dict.fromkeys(_BRANCHES, 4.0) | {"merge": 2.4, "joint": 7.7}
    layers = {"embeddings": 0.5, **{f"layer {i}": 0.5 for i in range(3)}}
    part = len(layers) ** 0.5
    moments = [0.25, 0.5, 0.75, 1.0]
    cosines = [[1.0 if a == b else 0.1 for b in _MODELS] for a in _MODELS]
    return DisplacementResult(
        models=[
            ModelDisplacement(model=m, total=total, layers=dict.fromkeys(layers, total / part), plane=(total, 0.3 * i))
            for i, (m, total) in enumerate(totals.items())
        ],
        cosines=cosines,
        ratio=7.7 / 2.4,
        plane_share=0.8,
        base_norm=300.0,
        trajectories=Trajectories(
            moments=moments,
            norms={m: [total * t for t in moments] for m, total in totals.items()},
            ratio=[3.0, 3.1, 3.2, 3.2],
            points={m: [(total * t, 0.4 * i * t) for t in moments] for i, (m, total) in enumerate(totals.items())},
            share=0.8,
        ),
        **_MARK,
    )


def _gain() -> GainResult:
    def face(shift: float) -> FaceLosses:
        losses = dict.fromkeys(_BRANCHES, 2.4) | {"base": 4.2, "merge": 2.0, "joint": 1.5}
        return FaceLosses(
            losses={m: _about(value + shift) for m, value in losses.items()},
            gain=_about(0.4),
            merge_minus_base=_about(-2.2),
            merge_minus_joint=_about(0.5),
        )

    return GainResult(
        weights=[0.25] * 4, held_out=face(0.1), train=face(0.0), gap_merge=_about(0.1), gap_joint=_about(0.3), **_MARK
    )
