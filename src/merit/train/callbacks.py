"""What happens beside training: log, progress, checkpoints, snapshots of the weights, and the pull towards θ0."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.base.errors import InputError, StageError
from merit.base.files import atomic_path, write_text
from merit.base.progress import write_state
from merit.run.layout import BranchDir
from merit.train.carry import last_step
from merit.train.checkpoints import Counters, drop_older, mark_whole
from merit.train.spec import BranchSpec

WIDTH = 65_536
_BLOCK = 256 * WIDTH  # elements whose signs are drawn at once
_SEED = 0  # one for all branches of all runs, so that their sketches can be compared
_log = logging.getLogger(__name__)


class BranchCallback(TrainerCallback):
    """Log, progress and timed checkpoints of one branch. Only the main process writes."""

    def __init__(self, branch: BranchDir, counters: Counters, checkpoint_minutes: float) -> None:
        self.branch = branch
        self.counters = counters
        self.checkpoint_seconds = checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._shown = 0.0
        self._loss: float | None = None
        self._began = (time.monotonic(), counters.supervised_tokens)  # of this start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            _cut_log(self.branch.log, state.global_step)
            self._began = (time.monotonic(), self.counters.supervised_tokens)
            self._progress(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        due = now - self._saved >= self.checkpoint_seconds and state.global_step < state.max_steps
        if _first_says(due, args):
            control.should_save = True
            self._saved = now
        if state.is_world_process_zero and (now - self._shown > 0.3 or state.global_step == state.max_steps):
            self._progress(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise StageError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower `train.learning_rate`, "
                "or set `train.precision: fp32`"
            )
        self._loss = logs["loss"]
        line = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        line |= {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        with self.branch.log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line | self.counters.as_dict()) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process writes a part of the checkpoint
        if state.is_world_process_zero:
            mark_whole(self.branch, state.global_step, self.counters)
            drop_older(self.branch)

    def _progress(self, state: TrainerState) -> None:
        self._shown = time.monotonic()
        note = [f"loss {self._loss:.3f}"] if self._loss is not None else []
        seconds, tokens = self._shown - self._began[0], self.counters.supervised_tokens - self._began[1]
        if tokens and seconds > 0:
            note.append(f"{tokens / seconds:,.0f} supervised tok/s")
        write_state(self.branch.progress, state.global_step, state.max_steps, ", ".join(note))


class RoundCallback(TrainerCallback):
    """Ends a round before the last: saves a checkpoint, and stops."""

    def __init__(self, spec: BranchSpec) -> None:
        self._spec = spec

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last_step(self._spec, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= last_step(self._spec, state.max_steps):
            control.should_save = control.should_training_stop = True


def _first_says(due: bool, args: TrainingArguments) -> bool:
    """The first process's clock decides for all: saving is a collective, which every rank must call."""
    if args.world_size == 1:
        return due
    flag = torch.tensor([int(due)], device=args.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _cut_log(log: Path, step: int) -> None:
    """Removes the lines that a killed start logged after the checkpoint from which training resumes."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, RecursionError, KeyError, TypeError):
            continue
    write_text(log, "".join(line + "\n" for line in kept))


def sketch_weights(parameters: Iterable[tuple[str, Tensor]]) -> NDArray[np.float64]:
    """(WIDTH,) float64 sketch of named parameters laid end to end."""
    out = torch.zeros(WIDTH, dtype=torch.float64)
    for name, parameter in parameters:
        digest = hashlib.sha256(f"{_SEED}:{name}".encode()).digest()
        signs = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        shift = int.from_bytes(digest[8:10], "little")  # else small parameters would all share the first buckets
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
    """Writes sketches of the weights, from trajectory/000.npy (the start) to trajectory/NNN.npy (the end), evenly."""

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
                _log.warning("`train.snapshots`: the weights are sharded over processes, so merit takes none")
            return
        path = self._branch.snapshot(index)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as part, Path(part).open("wb") as handle:
            np.save(handle, sketch_weights(parameters))


class PullCallback(TrainerCallback):
    """After each optimizer step θ ← θ − rate · pull · (θ − θ0), decoupled from the gradient like AdamW's decay.

    It copies θ0 before a checkpoint is loaded into the model.
    """

    def __init__(self, model: Any, pull: float) -> None:
        self.pull = pull
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        rates = {id(p): group["lr"] for group in kwargs["optimizer"].param_groups for p in group["params"]}
        for name, parameter in kwargs["model"].named_parameters():
            start = self._start.get(name.removeprefix("module."))
            if start is None or id(parameter) not in rates:
                continue
            if start.shape != parameter.shape:
                raise InputError("sharded weights cannot be pulled towards θ0; set it to 0", field="train.pull")
            if start.device != parameter.device:
                start = self._start[name.removeprefix("module.")] = start.to(parameter.device)
            parameter.lerp_(start.to(parameter.dtype), min(1.0, rates[id(parameter)] * self.pull))
