"""`actmat`: every linear layer solved for the directions that each branch has learned in; no data.

A linear layer's update is a sum of g xᵀ over training, x its inputs and g the gradients of its outputs. So
C_k = Δ_kᵀ Δ_k, with Δ_k = W_k − W_0, is a covariance of the inputs that branch k has learned from, each weighed by how
much was learned. Put in the place of RegMean's input Grams, the merge that changes every branch's outputs least is
closed (arXiv 2604.01329), and needs neither data nor gradients:

    Δ = (Σ Δ_k C_k + μ Δ̄) (Σ C_k + μ I)⁻¹,   μ = ridge × the mean diagonal of Σ C_k

Δ̄ is the average by tokens, toward which our ridge pulls: at ridge → ∞ it is the result. Everything that is no linear
layer, and a head tied to the embeddings, is averaged by tokens.

Three forms of the same, by what is small. Outputs × inputs are m × n:

* dual: Δ_k = Q_k V_k with orthonormal columns of Q_k (LoRA: from its factors; otherwise Q_k = I). V stacks all V_k,
  H = V Vᵀ, T stacks Q_k (H_kk + μ share_k I); then Δ = T (H + μ I)⁻¹ V, because V (VᵀV + μ I) = (V Vᵀ + μ I) V;
* by rows, for heads of many outputs: Σ_k Δ_k M_k with M_k = (C_k + μ share_k I) (Σ C_k + μ I)⁻¹, a few rows at a time;
* otherwise as it stands: memory is two n × n and six m × n, whatever K.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from merit.base.errors import InputError
from merit.merge.codec import Float64s
from merit.merge.rule import MergeRule
from merit.merge.steps import Rows, TensorSteps

_Matrix = NDArray[Any]
_BLOCK = 1024  # rows whose products are summed in the inputs' precision before they join float64 sums
_TALL = 8  # outputs ÷ inputs from which a layer is merged by rows


def solve(of: TensorSteps) -> Rows:
    """The merged step of one linear layer.

    Products of branches with 16-bit weights are float32, their sums float64. Where a ridge is too small for that, and
    for all other branches, everything is float64: where few directions hold most of the steps, the inverse enlarges the
    errors of float32. With singular values of 1/i (576 × 300) they were 6e-5 of the merged step, with even ones 4e-7.

    Raises:
        InputError: the ridge is too small for float64, too.
    """
    for dtype in ("f4", "f8") if of.short else ("f8",):
        with contextlib.suppress(np.linalg.LinAlgError):
            return _solve(of, np.dtype(dtype))
    raise InputError(f"{of.ridge:g} is too small for `{of.name}`: its system cannot be solved", field="ridge")


def _solve(of: TensorSteps, dtype: np.dtype[Any]) -> Rows:
    outputs, inputs = of.size
    count = len(of.shares)
    pairs = [of.factors(k) for k in range(count)]
    if all(pair is not None for pair in pairs):
        turned = [_orthonormal(*pair) for pair in pairs if pair is not None]
        return _dual([q for q, _ in turned], [v for _, v in turned], np.concatenate([v for _, v in turned]), of)
    if count * outputs <= inputs:
        stacked = np.empty((count * outputs, inputs), dtype)
        for k in range(count):
            stacked[k * outputs : (k + 1) * outputs] = of.step(k)
        return _dual([None] * count, np.split(stacked, count), stacked, of)
    if outputs > _TALL * inputs:
        return _by_rows(of, dtype)
    # Relative to the last branch R, whose product is then none: with S = Σ C_k + μ I,
    # Σ Δ_k C_k + μ Δ̄ = R S + Σ (Δ_k − R) C_k + μ (Δ̄ − R).
    last = of.step(count - 1).astype(dtype)
    total = np.zeros((inputs, inputs), order="F")
    _add_gram(total, last)
    pulled, mean = np.zeros((outputs, inputs)), np.zeros((outputs, inputs))
    for k, share in enumerate(of.shares[:-1]):
        step = np.ascontiguousarray(of.step(k))
        if outputs < inputs:
            short = step.astype(dtype)
            _add_gram(total, short)
            step -= last
            between = gram(step.T.astype(dtype, copy=False), short.T)
            pulled += between.astype(dtype, copy=False) @ short
            del short
        else:
            covariance = gram(step.astype(dtype, copy=False))
            total += covariance.T
            step -= last
            pulled += step.astype(dtype, copy=False) @ covariance.astype(dtype, copy=False)
        step *= share
        mean += step
        del step
    level = of.ridge * float(np.trace(total)) / inputs
    if level == 0:
        return lambda first, last: pulled[first:last]
    mean *= level
    pulled += mean
    del mean
    solved = _divide(pulled, total, level)
    solved += last
    return lambda first, last: solved[first:last]


def solve_on(of: TensorSteps, device: str) -> Rows:
    """The closed form as it stands, all in float64, on `device`: a few n × n and m × n there, whatever K.

    Layers of many outputs and LoRA are left to `solve`, which needs much less memory for them, or time.

    Raises:
        InputError: the ridge is too small for float64.
    """
    import torch

    outputs, inputs = of.size
    if outputs > _TALL * inputs or all(of.factors(k) is not None for k in range(len(of.shares))):
        return solve(of)
    total = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
    pulled, mean = total.new_zeros(outputs, inputs), total.new_zeros(outputs, inputs)
    for k, share in enumerate(of.shares):
        step = torch.from_numpy(of.step(k)).to(device)
        covariance = step.T @ step
        total += covariance
        pulled.addmm_(step, covariance) if outputs >= inputs else pulled.addmm_(step @ step.T, step)
        mean.add_(step, alpha=share)
    level = of.ridge * float(total.diagonal().mean())
    if level == 0:
        return lambda first, last: np.zeros((last - first, inputs))
    pulled.add_(mean, alpha=level)
    total.diagonal().add_(level)
    factor, info = torch.linalg.cholesky_ex(total)
    if int(info):
        raise InputError(f"{of.ridge:g} is too small for `{of.name}`: its system cannot be solved", field="ridge")
    solved = cast(Float64s, torch.cholesky_solve(pulled.T, factor).T.cpu().numpy())
    return lambda first, last: solved[first:last]


def _add_gram(total: Float64s, x: _Matrix) -> None:
    """Adds xᵀ x to `total`, which is in columns; in float64 to its lower half alone."""
    if x.dtype == np.float64:
        dsyrk(1.0, x.T, beta=1.0, c=total, lower=True, overwrite_c=True)
    else:
        total += gram(x).T


def _orthonormal(left: Float64s, right: Float64s) -> tuple[Float64s, Float64s]:
    """B A as Q V, with orthonormal columns of Q."""
    q, r = np.linalg.qr(left)
    return q, r @ right


def _dual(turns: Sequence[Float64s | None], parts: Sequence[_Matrix], stacked: _Matrix, of: TensorSteps) -> Rows:
    system = gram(stacked.T)
    level = of.ridge * float(np.trace(system)) / of.size[1]
    if level == 0:
        return lambda first, last: np.zeros((last - first, of.size[1]))
    left = np.empty((of.size[0], len(stacked)))
    at = 0
    for q, v, share in zip(turns, parts, of.shares, strict=True):
        own = slice(at, at + len(v))
        block = system[own, own] + level * share * np.eye(len(v))
        left[:, own] = block if q is None else q @ block
        at += len(v)
    solved = _divide(left, system.T, level).astype(stacked.dtype, copy=False)
    return lambda first, last: cast(Float64s, (solved[first:last] @ stacked).astype("f8", copy=False))


def _by_rows(of: TensorSteps, dtype: np.dtype[Any]) -> Rows:
    outputs, inputs = of.size
    covariances = np.zeros((len(of.shares), inputs, inputs))
    for k in range(len(of.shares)):
        for first in range(0, outputs, _BLOCK):
            covariances[k] += gram(of.rows(k, first, min(first + _BLOCK, outputs)).astype(dtype, copy=False))
    total = covariances.sum(0)
    level = of.ridge * float(np.trace(total)) / inputs
    if level == 0:
        return lambda first, last: np.zeros((last - first, inputs))
    for covariance, share in zip(covariances, of.shares, strict=True):
        covariance[np.diag_indices(inputs)] += level * share
    maps = _divide(covariances.reshape(-1, inputs), total.T, level).reshape(covariances.shape).astype(dtype, copy=False)

    def rows(first: int, last: int) -> Float64s:
        found = np.zeros((last - first, inputs))
        for k, by in enumerate(maps):
            found += of.rows(k, first, last).astype(dtype, copy=False) @ by
        return found

    return rows


def gram(x: _Matrix, y: _Matrix | None = None) -> Float64s:
    """xᵀ x, or xᵀ y, in float64, (columns × columns); products of a block of rows are summed in the type of `x`."""
    if x.dtype == np.float64:
        return cast(Float64s, x.T @ (x if y is None else y))
    total = np.zeros((x.shape[1], (x if y is None else y).shape[1]))
    for first in range(0, len(x), _BLOCK):
        part = np.ascontiguousarray(x[first : first + _BLOCK])
        total += part.T @ (part if y is None else np.ascontiguousarray(y[first : first + _BLOCK]))
    return total


def _divide(left: Float64s, system: Float64s, level: float) -> Float64s:
    """left (system + level I)⁻¹ by Cholesky. Both are overwritten. `system` is in columns; its lower half is read.

    Raises:
        LinAlgError: the system is not positive definite.
    """
    system[np.diag_indices(len(system))] += level
    factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
    return cast(Float64s, cho_solve(factor, left.T, overwrite_b=True, check_finite=False).T)


RULE = MergeRule(
    label="actmat merge",
    how="with every linear layer solved for the directions that each branch has learned in",
    layer=solve,
    on_device=solve_on,
    on_one_core=True,
)
