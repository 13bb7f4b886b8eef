"""What the checks find: one JSON record each. No torch here, so that the report can read them."""

from __future__ import annotations

from merit.base.record import Record, Sealed


class Estimate(Record):
    """A value with the 95% interval of a bootstrap over examples (within each dataset, paired between models)."""

    value: float
    low: float
    high: float


class Check(Sealed):
    """What every check's record begins with."""

    fingerprint: str  # of weights, data and settings
    seconds: float


class Segment(Record):
    """The straight line (1 − t) a + t b between two models."""

    a: str
    b: str
    t: list[float]
    loss: list[float]  # at each t
    chord: list[float]  # (1 − t) L(a) + t L(b)
    peak: Estimate  # largest L − chord strictly between the ends; negative where the loss sags below the chord
    at: float  # t of the peak

    @property
    def barrier(self) -> float:
        """max_t L(θ_t) − ((1 − t) L_a + t L_b) over the whole segment; the ends make it zero at least."""
        return max(0.0, self.peak.value)


class LmcResult(Check):
    """`lmc.json`: linear mode connectivity on held-out and on training examples."""

    held_out: list[Segment]
    train: list[Segment]
    examples: int  # held-out examples
    datasets: int


class ModelDisplacement(Record):
    """How far one model is from θ0."""

    model: str
    total: float  # ‖θ − θ0‖
    layers: dict[str, float]  # part of the model → norm; their squares add up to total²
    plane: tuple[float, float]  # on the first two principal axes of θ0, branches and joint


class Trajectories(Record):
    """The ways from θ0, from sketches: norms are estimates (about 1% off)."""

    moments: list[float]  # shares of the training, up to 1
    norms: dict[str, list[float]]  # model → ‖θ − θ0‖ at each moment
    ratio: list[float] | None  # joint ÷ merge at each moment
    points: dict[str, list[tuple[float, float]]]  # model → positions on the plane, θ0 at (0, 0)
    share: float  # of the variance that the plane holds


class DisplacementResult(Check):
    """`displacement.json`. Cosines are in the order of `models`."""

    models: list[ModelDisplacement]
    cosines: list[list[float]]  # between θ − θ0 of any two models
    ratio: float | None  # joint ÷ merge
    plane_share: float  # share of the variance that the plane holds
    base_norm: float  # ‖θ0‖
    trajectories: Trajectories | None = None  # with `train.snapshots` only


class FaceLosses(Record):
    """Losses of every model on one set of examples."""

    losses: dict[str, Estimate]
    gain: Estimate  # Σ w_i L(θ_i) − L(θ̄)
    merge_minus_base: Estimate
    merge_minus_joint: Estimate | None


class GainResult(Check):
    """`gain.json`: the left side of Theorem 1, and both losses of merge and joint."""

    weights: list[float]
    held_out: FaceLosses
    train: FaceLosses
    gap_merge: Estimate  # held-out minus training loss (two different sets: not paired)
    gap_joint: Estimate | None


class NoiseLevel(Record):
    """One model at one σ."""

    sigma: float
    loss: Estimate  # mean over seeds
    rise: Estimate  # against σ = 0
    seed_spread: float | None  # standard deviation between seeds


class PerturbationResult(Check):
    """`perturbation.json`."""

    levels: dict[str, list[NoiseLevel]]  # model → levels
    merge_minus_joint: list[Estimate] | None  # rise of merge minus rise of joint, level by level
    seeds: int


class CurvatureResult(Check):
    """`curvature.json`: the Hessian of the mixture's loss at θ0, or its Gauss–Newton part, called H below."""

    matrix: str = "hessian"  # or gauss_newton

    parameters: int
    tokens: int
    examples: int
    steps: int  # Hessian-vector products of Lanczos
    eigenvalues: list[float]  # largest first
    residuals: list[float]  # ‖Hu − λu‖ of each, as Lanczos bounds it
    lowest: float  # smallest Ritz value: negative where θ0 is no minimum
    trace: float
    trace_error: float  # standard error over probes
    axes: list[float]  # max_ℓ |cos(u_ℓ, conflict direction)| of each axis, lifted to parameter space
    tasks: list[float]  # the same of every dataset's gradient
    random: list[float]  # the same of random unit vectors
    z_tasks: float | None  # (mean of axes − mean of tasks) / sd of tasks
    z_random: float | None
    gain_top: float  # ½ Σ_ℓ λ_ℓ Var_w(u_ℓᵀδ) over these eigenpairs
    gain_quadratic: float  # the same over the whole spectrum: ½ Σ_i w_i (δ_i − δ̄)ᵀ H (δ_i − δ̄)
    gain_measured: float  # Σ w_i L(θ_i) − L(θ̄) on the same examples


class CalibrationPoint(Record):
    """Gradients of the first n examples against those of the most."""

    examples: int
    cosine: float  # mean over datasets
    cosine_sd: float  # over datasets
    rand: float  # adjusted Rand index of the groups


class CalibrationResult(Check):
    """`calibration.json`."""

    largest: int  # examples of the reference, at most
    points: list[CalibrationPoint]
    datasets: int


class LandscapeResult(Check):
    """`landscape.json`: loss on the plane of the first two principal axes through θ0, branches and joint."""

    x: list[float]
    y: list[float]
    loss: list[list[float]]  # rows are y
    models: dict[str, tuple[float, float]]
    off_plane: dict[str, float]  # distance of each model from the plane
    examples: int


RESULTS: dict[str, type[Check]] = {
    "lmc": LmcResult,
    "displacement": DisplacementResult,
    "gain": GainResult,
    "perturbation": PerturbationResult,
    "curvature": CurvatureResult,
    "calibration": CalibrationResult,
    "landscape": LandscapeResult,
}
