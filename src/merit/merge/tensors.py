"""A merge rule of tensors, carried out: one tensor of all branches and of θ0 at a time, from disk to disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from merit.base.errors import StageError
from merit.base.files import atomic_dir
from merit.config.sections import SHARD_BYTES
from merit.merge.codec import Scratch
from merit.merge.inputs import OpenedInputs, open_inputs
from merit.merge.rule import Branches, MergeRule, TensorSteps
from merit.merge.source import copy_side_files, write_config
from merit.merge.weights import normalised
from merit.models.checkpoint import FilePool, TensorInfo
from merit.models.writer import ShardFiles, ShardPlan, out_tensor


def merge_tensors(rule: MergeRule, branches: Branches, out: Path, *, base: Path, ridge: float) -> list[float]:
    """Writes θ0 + f(δ_1 … δ_K) to the new folder `out`, in float32, and returns each ‖θ_k − θ0‖.

    Branches may be checkpoints or LoRA folders over `base`, which is θ0.

    Raises:
        InputError: branches that do not fit together, or cannot be weighed.
        StageError: a tensor comes out with another shape, or is not finite.
    """
    shares = normalised(rule.weights(branches))
    opened = open_inputs(branches.folders, base)
    squares = [0.0] * len(shares)
    plan = ShardPlan.make(
        [out_tensor(info.name, "F32", info.shape, info.elements) for info in opened.tensors], SHARD_BYTES
    )
    with atomic_dir(out) as part, FilePool() as files:
        shards = ShardFiles(part, plan)
        try:
            for info in opened.tensors:
                of = _read(opened, info, files, shares, ridge)
                squares = [total + float(step.square().sum()) for total, step in zip(squares, of.steps, strict=True)]
                shards.write(info.name, 0, memoryview(_merged(rule, of).tobytes()))
            shards.sync()
        finally:
            shards.close()
        plan.write_index(part)
        write_config(opened.config_folder, part, "F32")
        copy_side_files([*branches.folders, base], part)
    return [math.sqrt(square) for square in squares]


def _read(opened: OpenedInputs, info: TensorInfo, files: FilePool, shares: list[float], ridge: float) -> TensorSteps:
    """One tensor of every source, exactly, as float64."""
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
    return TensorSteps(info.name, torch.from_numpy(theta0).reshape(info.shape), steps, shares, ridge)


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
