"""Models as steps from θ0: a whole model at θ0 + β δ in memory.

One read of a checkpoint serves every point of its ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merit.base.errors import InputError, StageError
from merit.merge.rule import Branches, BranchSums, MergeRule
from merit.models.checkpoint import Checkpoint
from merit.models.layout import find_layout, same_names
from merit.run.layout import BranchDir, RunDir
from merit.train.rows import training_rows
from merit.train.spec import BranchSpec

State = dict[str, Tensor]


def read_state(folder: Path) -> State:
    """Every tensor of a checkpoint, as it is stored."""
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


class Ray:
    """θ0, and any model as a step δ from it.

    Args:
        model: θ0, loaded in float32; its weights are overwritten by `set`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self._parameters = dict(model.named_parameters())
        self.theta0: State = {name: value.detach().clone() for name, value in self._parameters.items()}

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.theta0.values())

    def step(self, folder: Path) -> State:
        """θ − θ0 of a checkpoint.

        Raises:
            InputError: a parameter is missing in it, or has another shape.
        """
        checkpoint = Checkpoint.open(folder)
        stored, mine = find_layout(checkpoint.tensors).names, find_layout(self.theta0).names
        same = {mine[theirs]: stored[name] for theirs, name in same_names(stored, mine).items()}
        found: State = {}
        for name, start in self.theta0.items():
            if name not in same or checkpoint.info(same[name]).shape != start.shape:
                raise InputError(
                    "this parameter is not in the checkpoint under its own name and shape: another model, or experts "
                    "that are fused while loading, which this cannot read",
                    file=folder,
                    field=name,
                )
            found[name] = checkpoint.tensor(same[name]).to(start.device, start.dtype) - start
        return found

    def mean(self, folders: Sequence[Path], weights: Sequence[float]) -> tuple[State, list[float]]:
        """Σ n_k (θ_k − θ0) / Σ n_k, n_k the weights, and each ‖θ_k − θ0‖ (method.md, step 4).

        Sums are float64; branches are read one at a time.
        """
        total = zeros(self.theta0)
        distances = []
        for folder, weight in zip(folders, weights, strict=True):
            step = self.step(folder)
            distances.append(norm(step))
            add_step(total, step, weight / sum(weights))
        return {name: value.to(self.theta0[name].dtype) for name, value in total.items()}, distances

    def sum_up(
        self,
        rule: MergeRule,
        branches: Branches,
        run: RunDir,
        examples: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> tuple[BranchSums, list[float]]:
        """What a rule of sums has seen after all branches, and each ‖θ_k − θ0‖.

        Args:
            branches: checkpoints of branches of `run`, which holds their data.
            examples: training examples of each branch.
            advance: told how many branches are done.
        """
        if rule.sums is None:
            raise StageError(f"{rule.label}: this rule does not sum over branches")
        sums, distances = rule.sums(self.theta0), []
        for done, (folder, weight) in enumerate(zip(branches.folders, rule.weights(branches), strict=True), 1):
            step = self.step(folder)
            distances.append(norm(step))
            spec = BranchSpec.load(BranchDir(folder.parent).spec)
            sums.add(self.set(step), step, weight, training_rows(run.root, spec, examples))
            advance(done)
        return sums, distances

    @torch.no_grad()
    def set(self, step: Mapping[str, Tensor], scale: float = 1.0) -> Any:
        """The model at θ0 + scale · step."""
        for name, parameter in self._parameters.items():
            torch.add(self.theta0[name], step[name], alpha=scale, out=parameter.data)
        return self.model

    @torch.no_grad()
    def reset(self) -> Any:
        """The model at θ0."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self.theta0[name])
        return self.model


def zeros(like: Mapping[str, Tensor]) -> State:
    """An empty sum of steps, float64."""
    return {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}


def add_step(total: State, step: Mapping[str, Tensor], coefficient: float) -> None:
    """Adds c · δ to Σ c · δ, in float64."""
    for name, value in step.items():
        total[name].add_(value.double(), alpha=coefficient)


def norm(step: Mapping[str, Tensor]) -> float:
    """‖δ‖ over all parameters, in float64."""
    return math.sqrt(math.fsum(float(value.double().square().sum()) for value in step.values()))
