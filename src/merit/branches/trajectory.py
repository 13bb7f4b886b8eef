"""Where a branch was while it trained: small linear sketches of its weights, taken a few times.

Each parameter gets random signs from (seed, name) and is summed into 65,536 buckets, in float64. Sketches of two models
with the same seed subtract and average as the models do, and keep inner products in expectation. So from the branches'
sketches follow all distances, and the path of a merge that was never made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.io import atomic_path
from merit.logging import get_logger
from merit.run.layout import BranchDir

WIDTH = 65_536
_BLOCK = 256 * WIDTH  # elements whose signs are drawn at once
_SEED = 0  # the same for all branches of all runs: their sketches must be comparable
_log = get_logger(__name__)


def sketch_weights(parameters: Iterable[tuple[str, Tensor]]) -> NDArray[np.float64]:
    """(WIDTH,) float64 sketch of named parameters laid end to end."""
    out = torch.zeros(WIDTH, dtype=torch.float64)
    for name, parameter in parameters:
        digest = hashlib.sha256(f"{_SEED}:{name}".encode()).digest()
        signs = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        shift = int.from_bytes(digest[8:10], "little")  # small parameters must not share the first buckets
        flat = parameter.detach().reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            block = flat[start : start + _BLOCK].to("cpu", torch.float64)
            sign = torch.randint(0, 2, (block.numel(),), generator=signs, dtype=torch.int8)
            block = block * (2 * sign - 1)
            whole = block.numel() // WIDTH * WIDTH
            sums = block[:whole].view(-1, WIDTH).sum(0)
            sums[: block.numel() - whole] += block[whole:]
            out += sums.roll(shift)
    return out.numpy()


class TrajectoryCallback(TrainerCallback):
    """Writes trajectory/000.npy (the start) to trajectory/NNN.npy (the end), at even distances in steps."""

    def __init__(self, branch: BranchDir, snapshots: int) -> None:
        self._branch = branch
        self._snapshots = snapshots

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._save(0, state, model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        for index in range(1, self._snapshots + 1):
            if -(-index * state.max_steps // self._snapshots) == state.global_step:
                self._save(index, state, model)

    def _save(self, index: int, state: TrainerState, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        model = getattr(model, "module", model)
        parameters = list(model.named_parameters())
        if any(type(parameter.data) is not Tensor for _, parameter in parameters):
            if index == 0:
                _log.warning("`train.snapshots`: the weights are sharded over processes; none are taken")
            return
        path = self._branch.snapshot(index)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as part, Path(part).open("wb") as handle:
            np.save(handle, sketch_weights(parameters))
