"""The Hessian of the mean loss over a few examples, as products with vectors; and plain gradients in the same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from merit.base.errors import StageError
from merit.compute.batches import length_batches
from merit.compute.losses import supervised_logits, supervised_nll
from merit.data.example import Encoded

Flat = NDArray[np.float32]
Gradients = Sequence[Tensor | None]


class Hessian:
    """H of L(θ) = mean −log p over the supervised tokens of `rows`, at the model's weights as they stand.

    Vectors are (n,) float32, the parameters laid end to end in the order of `parameters`. Everything runs in the
    weights' own float32, never under autocast: a Hessian in bfloat16 is noise.

    Args:
        parameters: name → parameter; a tied weight once.
        batch_tokens: tokens in one pass; second derivatives need about three times the memory of a training step.
        gauss_newton: without the model's own curvature: H = Σ Jᵀ (diag p − p pᵀ) J ÷ tokens, with J the Jacobian of the
            logits. It has no negative eigenvalues; for this loss it is the Fisher matrix.
    """

    def __init__(
        self,
        model: Any,
        parameters: Mapping[str, Tensor],
        rows: Sequence[Encoded],
        *,
        batch_tokens: int,
        gauss_newton: bool = False,
    ) -> None:
        self._gauss_newton, self._batch_tokens = gauss_newton, batch_tokens
        self._model = model.eval()
        self._parameters = list(parameters.values())
        self.rows = rows
        sizes = [parameter.numel() for parameter in self._parameters]
        self._starts = np.cumsum([0, *sizes])
        self.offsets = dict(zip(parameters, self._starts[:-1].tolist(), strict=True))
        self.size = int(self._starts[-1])
        self.tokens = sum(len(row.input_ids) for row in rows)

    def product(self, vector: Flat, advance: Callable[[int], None] = lambda _: None) -> Flat:
        """H v: the gradient of gᵀv; for Gauss–Newton, the change of the logits along v, backpropagated.

        Raises:
            StageError: the product is not finite.
        """
        out = self._pass(self.rows, self._split(vector), advance)
        if not np.isfinite(out).all():
            raise StageError("a Hessian-vector product is not finite; are the model's weights finite?")
        return out

    def along(self, vector: Flat, advance: Callable[[int], None]) -> float:
        """vᵀHv, summed in float64.

        Raises:
            StageError: the product is not finite.
        """
        return float(np.dot(vector.astype(np.float64), self.product(vector, advance).astype(np.float64)))

    def gradient(self, rows: Sequence[Encoded], advance: Callable[[int], None]) -> Flat:
        """(n,) mean gradient of other rows."""
        return self._pass(rows, None, advance)

    def loss(self) -> float:
        """L at the weights as they stand."""
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in self._batches(self.rows):
                nll = supervised_nll(self._model, batch).nll
                total += float(nll.double().sum())
                tokens += nll.numel()
        return total / tokens

    def _batches(self, rows: Sequence[Encoded]) -> list[list[Encoded]]:
        batches = length_batches([len(row.input_ids) for row in rows], self._batch_tokens)
        return [[rows[index] for index in batch] for batch in batches]

    def _pass(self, rows: Sequence[Encoded], parts: Sequence[Tensor] | None, advance: Callable[[int], None]) -> Flat:
        """(n,) mean gradient, or with `parts`, a vector split by parameter, H times that vector."""
        out = np.zeros(self.size, np.float32)
        tokens = 0
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            for batch in self._batches(rows):
                if parts is not None and self._gauss_newton:
                    count, found = self._gauss_newton_pass(batch, parts)
                else:
                    count, found = self._gradient_pass(batch, parts)
                tokens += count
                for start, grad in zip(self._starts, found, strict=False):
                    if grad is not None:
                        out[start : start + grad.numel()] += grad.detach().reshape(-1).float().cpu().numpy()
                advance(len(batch))
        out /= max(1, tokens)
        return out

    def _gradient_pass(self, rows: Sequence[Encoded], parts: Sequence[Tensor] | None) -> tuple[int, Gradients]:
        """Tokens, and the summed loss's gradient; with `parts` its derivative along them."""
        nll = supervised_nll(self._model, rows).nll
        found = torch.autograd.grad(nll.sum(), self._parameters, create_graph=parts is not None, allow_unused=True)
        if parts is not None:
            found = torch.autograd.grad(_inner(found, parts), self._parameters, allow_unused=True)
        return nll.numel(), found

    def _gauss_newton_pass(self, rows: Sequence[Encoded], parts: Sequence[Tensor]) -> tuple[int, Gradients]:
        """Tokens, and Jᵀ (diag p − p pᵀ) J v. J v is the derivative by u of (Jᵀu)ᵀv, which is linear in u."""
        logits = supervised_logits(self._model, rows)
        u = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, self._parameters, u, create_graph=True, allow_unused=True)
        (change,) = torch.autograd.grad(_inner(back, parts), u, retain_graph=True)
        p = logits.detach().softmax(-1)
        curved = p * (change - (p * change).sum(-1, keepdim=True))
        return len(logits), torch.autograd.grad(logits, self._parameters, curved, allow_unused=True)

    def _split(self, vector: Flat) -> list[Tensor]:
        flat = torch.from_numpy(np.ascontiguousarray(vector))
        return [
            flat[start : start + parameter.numel()].view_as(parameter).to(parameter.device, parameter.dtype)
            for start, parameter in zip(self._starts, self._parameters, strict=False)
        ]


def _inner(grads: Gradients, parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([(g * v).sum() for g, v in zip(grads, parts, strict=True) if g is not None]).sum()


def within_budget(datasets: Sequence[Sequence[Encoded]], tokens: int) -> list[Encoded]:
    """Rows of all datasets in turn, until the next would exceed `tokens`; one row of each dataset at least."""
    chosen: list[Encoded] = []
    used = 0
    for turn in range(max(map(len, datasets), default=0)):
        for rows in datasets:
            if turn < len(rows) and (turn == 0 or used + len(rows[turn].input_ids) <= tokens):
                chosen.append(rows[turn])
                used += len(rows[turn].input_ids)
    return chosen
