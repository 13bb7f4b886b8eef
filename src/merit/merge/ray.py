"""Models as steps from θ0: a whole model at θ0 + β δ in memory, or one tensor of all branches at a time.

One read of a checkpoint serves every point of its ray. A merge rule of tensors is carried out from disk to disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merit.base.errors import InputError, StageError
from merit.base.files import atomic_dir
from merit.config.sections import SHARD_BYTES
from merit.merge.codec import Scratch
from merit.merge.inputs import OpenedInputs, open_inputs, write_config
from merit.merge.rule import Branches, BranchSums, MergeRule, TensorSteps
from merit.merge.side_files import copy_side_files
from merit.merge.weights import normalised
from merit.models.checkpoint import WHOLE, Checkpoint, FilePool, TensorInfo
from merit.models.layout import find_layout, same_names
from merit.models.loading import empty_model
from merit.models.source import ModelFolder
from merit.models.writer import ShardFiles, ShardPlan, out_tensor
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


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Parameter name → the linear layer it is the weight of. A head that is tied to the embeddings is no layer of its
    own: its rows are used as embeddings, too."""
    embeddings = {id(item.weight) for item in model.modules() if isinstance(item, nn.Embedding)}
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings
    }


def linear_weights(base: ModelFolder, tensors: Sequence[TensorInfo]) -> frozenset[str]:
    """Which of a checkpoint's `tensors` are linear layers' weights in the model of `base`, by their names there."""
    model = empty_model(base.path, trust_remote_code=base.trust_remote_code)
    common = {own: name for name, own in find_layout(name for name, _ in model.named_parameters()).names.items()}
    layers = {common[name] for name in linear_layers(model) if name in common}
    return frozenset(own for name, own in find_layout(info.name for info in tensors).names.items() if name in layers)


def merge_tensors(rule: MergeRule, branches: Branches, out: Path, *, base: ModelFolder, ridge: float) -> list[float]:
    """Writes θ0 + f(δ_1 … δ_K) to the new folder `out`, in float32, and returns each ‖θ_k − θ0‖.

    Branches may be checkpoints or LoRA folders over `base`, which is θ0.

    Raises:
        InputError: branches that do not fit together, or cannot be weighed.
        StageError: a tensor comes out with another shape, or is not finite.
    """
    shares = normalised(rule.weights(branches))
    opened = open_inputs(branches.folders, base.path)
    layers = cache(partial(linear_weights, base, opened.tensors))
    squares = [0.0] * len(shares)
    plan = ShardPlan.make(
        [out_tensor(i.name, i.dtype if i.dtype in WHOLE else "F32", i.shape, i.elements) for i in opened.tensors],
        SHARD_BYTES,
    )
    with atomic_dir(out) as part, FilePool() as files:
        shards = ShardFiles(part, plan)
        try:
            for info in opened.tensors:
                if info.dtype in WHOLE:
                    shards.write(info.name, 0, _raw(info, files))
                    continue
                theta0, steps = _read(opened, info, files)
                of = TensorSteps(info.name, theta0, steps, shares, ridge, layers)
                squares = [total + float(step.square().sum()) for total, step in zip(squares, of.steps, strict=True)]
                shards.write(info.name, 0, memoryview(_merged(rule, of).tobytes()))
            shards.sync()
        finally:
            shards.close()
        plan.write_index(part)
        write_config(opened.config_folder, part, "F32")
        copy_side_files([*branches.folders, base.path], part)
    return [math.sqrt(square) for square in squares]


def _raw(info: TensorInfo, files: FilePool) -> memoryview:
    """A tensor's bytes as they are stored."""
    out = np.empty(info.nbytes, np.uint8)
    files.read(info, 0, out)
    return memoryview(out.tobytes())


def _read(opened: OpenedInputs, info: TensorInfo, files: FilePool) -> tuple[Tensor, list[Tensor]]:
    """One tensor of θ0, and its steps in every source, exactly, as float64."""
    if opened.base is None:
        raise StageError("a merge by tensors needs θ0")
    scratch = Scratch.make(info.elements)
    theta0 = np.empty(info.elements)
    opened.base.read(files, info.name, 0, theta0, None, scratch)
    steps = []
    for source in opened.sources:
        value = np.empty(info.elements)
        source.read(files, info.name, 0, value, theta0, scratch)
        steps.append(torch.from_numpy(value - theta0).reshape(info.shape))
    return torch.from_numpy(theta0).reshape(info.shape), steps


def _merged(rule: MergeRule, of: TensorSteps) -> np.ndarray:
    """The merged tensor, flat, float32 in the byte order of safetensors."""
    if rule.tensor is None:
        raise StageError("this rule merges no tensors one by one")
    with torch.no_grad():
        step = rule.tensor(of)
    if step.shape != of.theta0.shape:
        raise StageError(f"{rule.label}: {of.name} has shape {list(of.theta0.shape)}, its step {list(step.shape)}")
    value = (of.theta0 + step.double()).reshape(-1).numpy().astype("<f4")
    if not np.isfinite(value).all():
        raise StageError(f"{rule.label}: {of.name} is not finite; a branch may have diverged")
    return value
