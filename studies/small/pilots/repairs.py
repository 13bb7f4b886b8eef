"""Two repairs on the branch side, and what they are told from: callbacks of a branch's training, and anchored data.

A callback may change gradients between the backward pass and AdamW's step (`on_pre_optimizer_step`, after clipping).
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback

from merit.data.store import EncodedDataset, write_store
from merit.train.curvature import input_grams, shared_inputs
from merit.train.rows import training_rows
from merit.train.spec import BranchData, BranchSpec

_MEMORY = 2**30  # bytes of Grams
_ROWS = 240  # training examples a group, from which its Grams are measured


def anchored(specs: list[BranchSpec], root: Path, out: Path, share: float) -> list[BranchSpec]:
    """The branches with about a `share` of their examples from the other groups. Every example is still trained on
    exactly once: of a dataset's rows, in order of content hash, the last `share` is dealt to the other groups in turn.
    """
    parts: list[list[BranchData]] = [[] for _ in specs]
    for home, spec in enumerate(specs):
        others = [k for k in range(len(specs)) if k != home]
        for item in spec.data:
            stored = EncodedDataset.open(root / item.data)
            rows = stored.train
            kept = len(rows) - round(share * len(rows))
            dealt = {home: rows[:kept]} | {k: rows[kept + i :: len(others)] for i, k in enumerate(others)}
            for k, chosen in dealt.items():
                if not len(chosen):
                    continue
                path = out / f"{item.name}-{share:g}-{home}-{k}.arrow"
                write_store(path, (stored[int(row)] for row in chosen), summary=lambda s=stored: s.summary)
                mark = f"{item.fingerprint}-{share:g}-{k}"
                parts[k].append(item.model_copy(update={"data": str(path.relative_to(root)), "fingerprint": mark}))
    return [spec.model_copy(update={"data": part}) for spec, part in zip(specs, parts, strict=True)]


def other_grams(model: torch.nn.Module, specs: list[BranchSpec], root: Path) -> list[dict[str, torch.Tensor]]:
    """Branch → layer → G₋ₖ, the mean of x xᵀ over the other groups' inputs at θ0, by tokens; its mean diagonal is 1."""
    found: list[dict[str, torch.Tensor]] = []
    for spec in specs:
        rows = training_rows(root, spec, _ROWS)
        groups = shared_inputs(model, rows)
        grams = list(input_grams(model, rows, groups, _MEMORY))
        found.append({name: gram for group, gram in zip(groups, grams, strict=True) for name in group})
    others = []
    for k in range(len(specs)):
        sums = {
            name: sum(found[j][name] * spec.planned_tokens for j, spec in enumerate(specs) if j != k)
            for name in found[k]
        }
        others.append({name: (total / total.diagonal().mean()).float() for name, total in sums.items()})
    return others


class Guard(TrainerCallback):
    """Adds λ Δ G to the gradient of every linear layer: that of λ/2 tr(Δ G Δᵀ), Δ = W − W_0.

    Args:
        grams: layer → G; None: the identity, which pulls all directions to θ0 alike.
    """

    def __init__(
        self, model: torch.nn.Module, strength: float, grams: dict[str, torch.Tensor], isotropic: bool
    ) -> None:
        self.strength, self.grams, self.isotropic = strength, grams, isotropic
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if name in grams}

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        own = dict(model.named_parameters())
        for name, start in self.start.items():
            step = own[name] - start
            own[name].grad.add_(step if self.isotropic else step @ self.grams[name], alpha=self.strength)


class Noise(TrainerCallback):
    """Takes every gradient at weights with Gaussian noise, `size` × the RMS of each matrix, and then restores them."""

    def __init__(self, size: float, seed: int) -> None:
        self.size, self.seed, self.kept = size, torch.Generator().manual_seed(seed), {}

    @torch.no_grad()
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        for name, p in model.named_parameters():
            if p.ndim == 2:
                self.kept[name] = p.detach().clone()
                noise = torch.randn(p.shape, generator=self.seed)
                p.add_(noise, alpha=self.size * float(p.square().mean().sqrt()))

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, p in model.named_parameters():
            if name in self.kept:
                p.copy_(self.kept[name])
